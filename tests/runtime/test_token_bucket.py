"""Rate limits and token buckets."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from trunkline_runtime.token_bucket import LARGEST_MESSAGE_BYTES, RateLimit, TokenBucket

TIMES = st.lists(st.floats(0, 0.5), max_size=60)


@given(TIMES, st.integers(1, 50))
def test_no_more_than_the_rate_passes_in_any_time_but_for_one_second_s_worth(
    pauses: list[float], rate: int
) -> None:
    meter, now, passed = TokenBucket(), 100.0, []
    for pause in pauses:
        now += pause
        if not meter.take(RateLimit(rate), 0, now):
            passed.append(now)
    for start in range(len(passed)):
        for end in range(start, len(passed)):
            assert end - start + 1 <= rate * (passed[end] - passed[start]) + rate + 1e-6


@given(TIMES, st.integers(1, 50))
def test_a_retry_passes_after_the_wait_and_not_before(pauses: list[float], rate: int) -> None:
    meter, now = TokenBucket(), 100.0
    for pause in pauses:
        now += pause
        wait_s = meter.take(RateLimit(rate), 0, now)
        if wait_s:
            assert meter.take(RateLimit(rate), 0, now + wait_s * 0.99) > 0 or wait_s < 1e-4
            assert meter.take(RateLimit(rate), 0, now + wait_s + 1e-6) == 0
            now += wait_s + 1e-6


def test_whoever_rests_may_send_a_whole_seconds_worth_at_once() -> None:
    meter = TokenBucket()
    assert [meter.take(RateLimit(3), 0, 10) > 0 for _ in range(4)] == [False, False, False, True]
    assert [meter.take(RateLimit(3), 0, 20) > 0 for _ in range(4)] == [False, False, False, True]


def test_the_largest_message_passes_however_low_the_rate_and_is_then_waited_for() -> None:
    meter, rate = TokenBucket(), RateLimit(0, 1000)
    assert meter.take(rate, LARGEST_MESSAGE_BYTES, 10) == 0
    assert meter.take(rate, 1, 10) == pytest.approx(0.001)
    assert meter.take(rate, 100_000, 10) == pytest.approx(100)


def test_the_longer_wait_counts_and_a_refused_message_takes_nothing() -> None:
    meter, rate = TokenBucket(), RateLimit(10, LARGEST_MESSAGE_BYTES)
    assert meter.take(rate, LARGEST_MESSAGE_BYTES, 10) == 0
    assert meter.take(rate, LARGEST_MESSAGE_BYTES // 2, 10) == pytest.approx(0.5)
    for _ in range(9):
        assert meter.take(rate, 0, 10) == 0
    assert meter.take(rate, 0, 10) == pytest.approx(0.1)


def test_a_message_that_was_not_sent_is_refunded() -> None:
    meter, rate = TokenBucket(), RateLimit(1, 1000)
    assert meter.take(rate, 10, 10) == 0
    meter.refund(rate, 10)
    assert meter.take(rate, LARGEST_MESSAGE_BYTES, 10) == 0


def test_a_charge_always_passes_and_is_waited_for_afterwards() -> None:
    meter, rate = TokenBucket(), RateLimit(100)
    assert meter.charge(rate, 100, 0, 10) == 0
    assert meter.charge(rate, 250, 0, 10) == pytest.approx(2.5)
    assert meter.take(rate, 0, 12.5) == pytest.approx(0.01)
    assert meter.take(rate, 0, 12.6) == 0


def test_no_rate_is_no_limit() -> None:
    meter = TokenBucket()
    assert not any(meter.take(RateLimit(), 1 << 40, 0) for _ in range(1000))
    assert meter.charge(RateLimit(), 10**9, 10**12, 0) == 0


def test_a_changed_rate_counts_at_once() -> None:
    meter = TokenBucket()
    assert [meter.take(RateLimit(1), 0, 10) > 0 for _ in range(2)] == [False, True]
    assert meter.take(RateLimit(1000), 0, 10) == pytest.approx(0.001)
    assert meter.take(RateLimit(1000), 0, 10.001) == 0


@pytest.mark.parametrize(
    ("rate", "sentence"),
    [
        (RateLimit(5), "5 messages a second"),
        (RateLimit(0, 1 << 20), "1048576 bytes a second"),
        (RateLimit(5, 10), "5 messages or 10 bytes a second"),
    ],
)
def test_a_rate_says_itself(rate: RateLimit, sentence: str) -> None:
    assert rate.sentence == sentence
