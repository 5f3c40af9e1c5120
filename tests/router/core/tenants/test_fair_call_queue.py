"""Calls that come faster than they may: who waits how long, who is refused, and what is bounded."""

from __future__ import annotations

from collections import deque
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st
from trunkline.v1.catalogue import Refused
from trunkline.v1.tenant_limits import default_limits
from trunkline.v1.tenant_pb2 import TENANT_STATE_ACTIVE, TenantLimits
from trunkline_router.core.tenants.fair_call_queue import (
    MAX_DELAY_S,
    MAX_RESTING,
    MAX_RESTING_BYTES,
    MAX_WAIT_S,
    REFUSALS_PER_S,
    SMALL_BYTES,
    FairCallQueue,
    QueuedCall,
    Tarpit,
)
from trunkline_router.core.tenants.tenant import Tenant
from trunkline_router.core.values.log_records import StoredTenant
from trunkline_runtime.token_bucket import LARGEST_MESSAGE_BYTES, RateLimit, TokenBucket

SOON_S = 1e-5
BYTES_PER_S = 6 << 20
LARGEST_REQUEST_BYTES = 16 << 20


class Calls:
    """Callers of one meter, and a clock."""

    def __init__(self, rate: RateLimit) -> None:
        self.turns = FairCallQueue(TokenBucket(), "somebody")
        self.turns.rate = rate
        self.now = 100.0
        self.waiting: deque[int] = deque()
        self.since: dict[int, float] = {}
        #: When which call went on, with how many bytes.
        self.passed: list[tuple[float, int, int]] = []
        self.late: list[int] = []
        self._next_s = 0.0
        self._made: dict[int, QueuedCall] = {}

    def call(self, number: int, size: int = 0, patience_s: float = 60.0) -> bool:
        """Whether it was not refused."""
        if self.turns.take(size, self.now):
            assert not self.waiting
            self.passed.append((self.now, number, size))
            return True
        turn = self._made[number] = QueuedCall(
            size, lambda: self._come(number, size), lambda _: self._late(number)
        )
        try:
            self.turns.wait(turn, patience_s, self.now)
        except Refused:
            return False
        self.waiting.append(number)
        self.since[number] = self.now
        if not self._next_s:
            self._pass_on()
        return True

    def give_up(self, number: int) -> None:
        self.waiting.remove(number)
        self.turns.leave(self._made[number])
        self._pass_on()

    def pause(self, seconds: float) -> None:
        until = self.now + seconds
        while self._next_s and self._next_s <= until:
            self.now = self._next_s
            self._pass_on()
        self.now = until

    def _pass_on(self) -> None:
        wait_s = self.turns.pass_on(self.now)
        assert bool(wait_s) == bool(self.waiting)
        self._next_s = self.now + wait_s + SOON_S if wait_s else 0.0

    def _late(self, number: int) -> None:
        assert self.waiting.popleft() == number
        self.late.append(number)

    def _come(self, number: int, size: int) -> None:
        assert self.waiting.popleft() == number
        self.passed.append((self.now, number, size))


@given(
    st.lists(
        st.tuples(
            st.sampled_from([0.0, 0.0, 0.0, 0.01, 0.3]),
            st.sampled_from([0, 1 << 20, 4 << 20, LARGEST_MESSAGE_BYTES, LARGEST_REQUEST_BYTES]),
            st.floats(0.01, 2),
            st.booleans(),
        ),
        max_size=80,
    ),
    st.integers(1, 20),
)
def test_calls_go_on_in_their_order_and_no_faster_than_they_may(
    arrivals: list[tuple[float, int, float, bool]], rate: int
) -> None:
    calls = Calls(RateLimit(rate, BYTES_PER_S))
    let_in, gone = [], set()
    for number, (pause_s, size, patience_s, gives_up) in enumerate(arrivals):
        calls.pause(pause_s)
        if calls.call(number, size, patience_s):
            let_in.append(number)
            if gives_up and number in calls.waiting:
                calls.give_up(number)
                gone.add(number)
        assert len(calls.turns) == len(calls.waiting) <= rate * MAX_WAIT_S + 1
    calls.pause(3 * MAX_WAIT_S)
    assert not calls.late
    assert [number for _, number, _ in calls.passed] == [number for number in let_in if number not in gone]
    for at, number, _ in calls.passed:
        waited_s = at - calls.since.get(number, at)
        # What of one bucket runs over while calls wait for the other is lost.
        assert waited_s <= 2 * min(MAX_WAIT_S, arrivals[number][2]) + len(arrivals) * 2 * SOON_S
    for start, (began, _, _) in enumerate(calls.passed):
        size = 0
        for count, (at, _, more) in enumerate(calls.passed[start:], 1):
            # Of a call more than a bucket holds is not counted.
            size += min(more, LARGEST_MESSAGE_BYTES)
            assert count <= rate * (at - began) + max(rate, 1) + 1e-3
            assert size <= BYTES_PER_S * (at - began) + LARGEST_MESSAGE_BYTES + 1e3


def test_who_comes_one_by_one_is_never_refused_but_slowed_down() -> None:
    calls = Calls(RateLimit(10))
    for number in range(40):
        assert calls.call(number)
        while calls.waiting:
            calls.pause(0.01)
    assert calls.now - 100 == pytest.approx(3, abs=0.5)


def test_a_call_whose_turn_would_be_too_late_is_refused_and_says_when_to_come_again() -> None:
    calls = Calls(RateLimit(4, unit="calls"))
    assert [calls.call(number) for number in range(10)] == [True] * 8 + [False] * 2
    with pytest.raises(Refused) as refused:
        calls.turns.wait(QueuedCall(0, lambda: None, lambda _: None), 60, calls.now)
    assert refused.value.retry_after_ms == 1250
    assert str(refused.value) == "Rate limit exceeded: somebody may send 4 calls a second"
    calls.pause(0.3)
    assert calls.call(10)


def test_a_call_that_would_be_given_up_before_its_turn_is_refused_at_once() -> None:
    calls = Calls(RateLimit(10))
    assert all(calls.call(number) for number in range(10))
    assert not calls.call(10, patience_s=0.05)
    assert calls.call(11, patience_s=0.15)


def test_bytes_that_wait_are_bounded_like_calls() -> None:
    calls = Calls(RateLimit(1000, LARGEST_MESSAGE_BYTES))
    large = LARGEST_MESSAGE_BYTES // 4
    assert [calls.call(number, large) for number in range(9)] == [True] * 8 + [False]
    calls.pause(0.26)
    assert calls.call(9, large)
    assert not calls.call(10, large)


def test_requests_of_all_calls_are_bounded_in_bytes() -> None:
    acme = tenant(default_limits(bytes_per_s=1))
    assert acme.calls.take(LARGEST_MESSAGE_BYTES, 100.0)
    assert not acme.calls.take(1000, 100.0)


def test_who_comes_later_does_not_go_before_one_that_is_larger() -> None:
    calls = Calls(RateLimit(1000, LARGEST_MESSAGE_BYTES))
    assert calls.call(0, LARGEST_MESSAGE_BYTES)
    assert calls.call(1, LARGEST_MESSAGE_BYTES // 2)
    assert calls.call(2)
    assert list(calls.waiting) == [1, 2]


def test_whoever_gives_up_makes_room_for_others() -> None:
    calls = Calls(RateLimit(4))
    assert all(calls.call(number) for number in range(8))
    assert not calls.call(8)
    calls.give_up(5)
    assert calls.call(9)
    calls.pause(1.1)
    assert [number for _, number, _ in calls.passed] == [0, 1, 2, 3, 4, 6, 7, 9]


def test_what_streams_were_charged_is_waited_for_by_calls() -> None:
    calls = Calls(RateLimit(10))
    assert calls.call(0)
    assert calls.turns.charge(14, 0, calls.now) == pytest.approx(0.5)
    assert calls.call(1)
    calls.pause(0.59)
    assert len(calls.passed) == 1
    calls.pause(0.02)
    assert len(calls.passed) == 2


@pytest.mark.parametrize("depth_s", [1.0, 0.9])
def test_a_call_that_is_larger_than_any_bucket_passes_when_it_is_full(depth_s: float) -> None:
    calls = Calls(RateLimit(10, 8 << 20, depth_s=depth_s))
    assert calls.call(0, 16 << 20)
    # A second's worth waits at most.
    assert not calls.call(1, 16 << 20)
    calls.pause(1.0)
    assert calls.call(2, 16 << 20)
    calls.pause(0.6)
    assert [number for _, number, _ in calls.passed] == [0, 2]


def test_a_call_whose_turn_does_not_come_is_refused_though_it_waited() -> None:
    """The limit is lowered, and what was reckoned with does not come."""
    calls = Calls(RateLimit(4))
    assert all(calls.call(number) for number in range(8))
    calls.turns.rate = RateLimit(0.1)
    calls.pause(MAX_DELAY_S + 0.1)
    assert calls.late
    assert [number for _, number, _ in calls.passed] + calls.late == list(range(8))
    assert calls.turns.pass_on(calls.now) == 0


def tenant(limits: TenantLimits | None = None) -> Tenant:
    return Tenant(StoredTenant("t", TENANT_STATE_ACTIVE, b"", 0, 0), limits)


@given(st.integers(20, 2000), st.lists(st.booleans(), max_size=100))
def test_clients_find_room_however_many_calls_their_backends_make(rate: int, draws: list[bool]) -> None:
    """A tenth of a second's worth is theirs alone, and what they take calls wait for."""
    acme, now = tenant(default_limits(messages_per_s=rate)), 100.0
    room = rate * 0.1 - 1
    taken = 0.0
    for client_speaks in draws:
        now += 0.001
        taken = max(0.0, taken - 0.001 * rate)
        while acme.says.take(0, now):
            pass
        if client_speaks and taken < room:
            acme.take(0, now)
            taken += 1


@pytest.mark.parametrize("arrivals_per_s", [100, 120, 500])
def test_backends_get_a_tenth_however_much_their_clients_say(arrivals_per_s: int) -> None:
    acme, now, clients, backends, late = tenant(default_limits(messages_per_s=100)), 100.0, 0, 0, 0

    def came() -> None:
        nonlocal backends
        backends += 1

    def refused(_: Refused) -> None:
        nonlocal late
        late += 1

    next_client, ask_at = now, 0.0
    while now < 130:
        if now >= next_client:
            next_client += 1 / arrivals_per_s
            with suppress(Refused):
                acme.take(0, now)
                clients += 1
        if not len(acme.says) and not acme.says.take(0, now):
            with suppress(Refused):
                acme.says.wait(QueuedCall(0, came, refused), 60, now)
                ask_at = now
        if len(acme.says) and now >= ask_at:
            ask_at = now + (acme.says.pass_on(now) or 60)
        now += 0.001
    assert not late
    assert backends >= 30 * 10 * 0.9
    assert clients >= 30 * 80
    assert clients + backends <= 30 * 100 + 110


def test_a_tenant_of_one_message_a_second_has_backends_too() -> None:
    acme = tenant(default_limits(messages_per_s=1))
    assert acme.says.take(0, 100.0)
    assert not acme.says.take(0, 100.5)
    assert acme.says.take(0, 101.1)


def test_few_refusals_are_told_at_once_and_many_one_after_the_other() -> None:
    resting = Tarpit()
    for _ in range(REFUSALS_PER_S):
        assert resting.begin(0, 100.0) == 0
        resting.end(0)
    waits = [resting.begin(0, 100.0) for _ in range(300)]
    assert waits == [pytest.approx((number + 1) / REFUSALS_PER_S) for number in range(300)]
    for _ in range(300):
        resting.end(0)
    assert resting.begin(0, 102.0) == 0


def test_whoever_comes_back_at_once_is_told_no_more_often_however_many_they_are() -> None:
    for callers in (1, 5, 2000):
        resting, now, told = Tarpit(), 100.0, 0
        rests = sorted(now + resting.begin(0, now) for _ in range(callers))
        while (now := rests.pop(0)) < 110:
            resting.end(0)
            told += 1
            # Being told, and coming again, takes a moment.
            now += 0.001
            rests.append(now + resting.begin(0, now))
            rests.sort()
        assert told <= 2 * REFUSALS_PER_S * 10 + REFUSALS_PER_S


def test_what_rests_is_bounded() -> None:
    resting = Tarpit()
    for _ in range(MAX_RESTING):
        resting.begin(0, 100.0)
    assert resting.begin(0, 100.0) == 0
    resting = Tarpit()
    resting.begin(MAX_RESTING_BYTES, 100.0)
    assert resting.begin(SMALL_BYTES + 1, 100.0) == 0
    assert resting.begin(SMALL_BYTES, 100.0) > 0
    resting.end(MAX_RESTING_BYTES)
    assert resting.begin(SMALL_BYTES + 1, 100.0) > 0
