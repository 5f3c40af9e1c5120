"""FairCallQueue and Tarpit: order, waits, refusals and bounds."""

from __future__ import annotations

from collections import deque
from contextlib import suppress

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from trunkline.v1.catalogue import Refused
from trunkline.v1.tenant_limits import default_limits
from trunkline.v1.tenant_pb2 import TENANT_STATE_ACTIVE, TenantLimits
from trunkline_router.core.tenants.fair_call_queue import (
    MAX_DELAY_S,
    MAX_TARPIT_BYTES,
    MAX_TARPIT_CALLS,
    MAX_WAIT_S,
    REFUSALS_PER_S,
    SMALL_BYTES,
    FairCallQueue,
    QueuedCall,
    Tarpit,
)
from trunkline_router.core.tenants.tenant import Tenant
from trunkline_router.core.values.stored_records import StoredTenant
from trunkline_runtime.token_bucket import LARGEST_MESSAGE_BYTES, RateLimit, TokenBucket

SOON_S = 1e-5
BYTES_PER_S = 6 << 20
LARGEST_REQUEST_BYTES = 16 << 20


class Calls:
    """Callers that share one token bucket, and a clock."""

    def __init__(self, rate: RateLimit) -> None:
        self.queue = FairCallQueue(TokenBucket(), "somebody")
        self.queue.rate = rate
        self.now = 100.0
        self.waiting: deque[int] = deque()
        self.since: dict[int, float] = {}
        #: Time, number and bytes of each admitted call, in order.
        self.admitted: list[tuple[float, int, int]] = []
        self.rejected: list[int] = []
        self._next_s = 0.0
        self._queued: dict[int, QueuedCall] = {}

    def call(self, number: int, size: int = 0, patience_s: float = 60.0) -> bool:
        """Make a call. Returns False if it is rejected at once."""
        if self.queue.try_take(size, self.now):
            assert not self.waiting
            self.admitted.append((self.now, number, size))
            return True
        call = self._queued[number] = QueuedCall(
            size, lambda: self._admit(number, size), lambda _: self._reject(number)
        )
        try:
            self.queue.enqueue(call, patience_s, self.now)
        except Refused:
            return False
        self.waiting.append(number)
        self.since[number] = self.now
        if not self._next_s:
            self._admit_ready()
        return True

    def cancel(self, number: int) -> None:
        self.waiting.remove(number)
        self.queue.remove(self._queued[number])
        self._admit_ready()

    def pause(self, seconds: float) -> None:
        until = self.now + seconds
        while self._next_s and self._next_s <= until:
            self.now = self._next_s
            self._admit_ready()
        self.now = until

    def _admit_ready(self) -> None:
        wait_s = self.queue.admit_ready(self.now)
        assert bool(wait_s) == bool(self.waiting)
        self._next_s = self.now + wait_s + SOON_S if wait_s else 0.0

    def _reject(self, number: int) -> None:
        assert self.waiting.popleft() == number
        self.rejected.append(number)

    def _admit(self, number: int, size: int) -> None:
        assert self.waiting.popleft() == number
        self.admitted.append((self.now, number, size))


@example(
    [
        (0.0, 4 << 20, 1.0, False),
        (0.0, 12 << 20, 1.0, False),
        (0.3, 0, 1.0, False),
        (0.0, 0, 1.0, False),
        (0.3, 0, 1.0, False),
    ],
    2,
)
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
def test_calls_are_admitted_in_order_and_no_faster_than_the_rate(
    arrivals: list[tuple[float, int, float, bool]], rate: int
) -> None:
    limit = RateLimit(rate, BYTES_PER_S)
    calls, depth_s = Calls(limit), limit.messages_depth_s
    accepted, gone = [], set()
    for number, (pause_s, size, patience_s, cancels) in enumerate(arrivals):
        calls.pause(pause_s)
        if calls.call(number, size, patience_s):
            accepted.append(number)
            if cancels and number in calls.waiting:
                calls.cancel(number)
                gone.add(number)
        # While the first one waits for bytes, the full bucket of messages also counts.
        assert len(calls.queue) == len(calls.waiting) <= rate * (MAX_WAIT_S + depth_s)
    calls.pause(3 * MAX_WAIT_S)
    assert not calls.rejected
    assert [number for _, number, _ in calls.admitted] == [
        number for number in accepted if number not in gone
    ]
    for at, number, _ in calls.admitted:
        waited_s = at - calls.since.get(number, at)
        # Tokens that overflow one bucket while calls wait for the other are lost.
        assert waited_s <= 2 * min(MAX_WAIT_S, arrivals[number][2]) + len(arrivals) * 2 * SOON_S
    for start, (began, _, _) in enumerate(calls.admitted):
        size = 0
        for count, (at, _, more) in enumerate(calls.admitted[start:], 1):
            # A call counts for no more than a bucket holds.
            size += min(more, LARGEST_MESSAGE_BYTES)
            assert count <= rate * (at - began) + max(rate, 1) + 1e-3
            assert size <= BYTES_PER_S * (at - began) + LARGEST_MESSAGE_BYTES + 1e3


def test_a_caller_with_one_call_at_a_time_is_slowed_down_and_never_rejected() -> None:
    calls = Calls(RateLimit(10))
    for number in range(40):
        assert calls.call(number)
        while calls.waiting:
            calls.pause(0.01)
    assert calls.now - 100 == pytest.approx(3, abs=0.5)


def test_a_call_that_would_wait_too_long_is_rejected_with_the_time_to_retry() -> None:
    calls = Calls(RateLimit(4, unit="calls"))
    assert [calls.call(number) for number in range(10)] == [True] * 8 + [False] * 2
    with pytest.raises(Refused) as refused:
        calls.queue.enqueue(QueuedCall(0, lambda: None, lambda _: None), 60, calls.now)
    assert refused.value.retry_after_ms == 1250
    assert str(refused.value) == "Rate limit exceeded: somebody may send 4 calls a second"
    calls.pause(0.3)
    assert calls.call(10)


def test_a_call_whose_deadline_would_pass_in_the_queue_is_rejected_at_once() -> None:
    calls = Calls(RateLimit(10))
    assert all(calls.call(number) for number in range(10))
    assert not calls.call(10, patience_s=0.05)
    assert calls.call(11, patience_s=0.15)


def test_queued_bytes_are_bounded_like_queued_calls() -> None:
    calls = Calls(RateLimit(1000, LARGEST_MESSAGE_BYTES))
    large = LARGEST_MESSAGE_BYTES // 4
    assert [calls.call(number, large) for number in range(9)] == [True] * 8 + [False]
    calls.pause(0.26)
    assert calls.call(9, large)
    assert not calls.call(10, large)


def test_requests_of_all_calls_are_bounded_in_bytes() -> None:
    acme = tenant(default_limits(bytes_per_s=1))
    assert acme.call_queue.try_take(LARGEST_MESSAGE_BYTES, 100.0)
    assert not acme.call_queue.try_take(1000, 100.0)


def test_a_later_call_does_not_overtake_a_larger_one() -> None:
    calls = Calls(RateLimit(1000, LARGEST_MESSAGE_BYTES))
    assert calls.call(0, LARGEST_MESSAGE_BYTES)
    assert calls.call(1, LARGEST_MESSAGE_BYTES // 2)
    assert calls.call(2)
    assert list(calls.waiting) == [1, 2]


def test_a_cancelled_call_makes_room_for_others() -> None:
    calls = Calls(RateLimit(4))
    assert all(calls.call(number) for number in range(8))
    assert not calls.call(8)
    calls.cancel(5)
    assert calls.call(9)
    calls.pause(1.1)
    assert [number for _, number, _ in calls.admitted] == [0, 1, 2, 3, 4, 6, 7, 9]


def test_calls_wait_for_what_streams_were_charged() -> None:
    calls = Calls(RateLimit(10))
    assert calls.call(0)
    assert calls.queue.charge(14, 0, calls.now) == pytest.approx(0.5)
    assert calls.call(1)
    calls.pause(0.59)
    assert len(calls.admitted) == 1
    calls.pause(0.02)
    assert len(calls.admitted) == 2


@pytest.mark.parametrize("depth_s", [1.0, 0.9])
def test_a_call_larger_than_the_bucket_is_admitted_when_the_bucket_is_full(depth_s: float) -> None:
    calls = Calls(RateLimit(10, 8 << 20, depth_s=depth_s))
    assert calls.call(0, 16 << 20)
    # At most one second's worth is queued.
    assert not calls.call(1, 16 << 20)
    calls.pause(1.0)
    assert calls.call(2, 16 << 20)
    calls.pause(0.6)
    assert [number for _, number, _ in calls.admitted] == [0, 2]


def test_a_queued_call_is_rejected_at_its_deadline() -> None:
    """The limit is lowered after the wait was estimated."""
    calls = Calls(RateLimit(4))
    assert all(calls.call(number) for number in range(8))
    calls.queue.rate = RateLimit(0.1)
    calls.pause(MAX_DELAY_S + 0.1)
    assert calls.rejected
    assert [number for _, number, _ in calls.admitted] + calls.rejected == list(range(8))
    assert calls.queue.admit_ready(calls.now) == 0


def tenant(limits: TenantLimits) -> Tenant:
    return Tenant(StoredTenant("t", TENANT_STATE_ACTIVE, b"", 0, 0), limits)


@given(st.integers(20, 2000), st.lists(st.booleans(), max_size=100))
def test_backends_leave_clients_their_reserve(rate: int, draws: list[bool]) -> None:
    """A tenth of a second's worth is reserved for clients, and backends wait for what clients take."""
    acme, now = tenant(default_limits(messages_per_s=rate)), 100.0
    room = rate * 0.1 - 1
    taken = 0.0
    for client_publishes in draws:
        now += 0.001
        taken = max(0.0, taken - 0.001 * rate)
        while acme.publish_queue.try_take(0, now):
            pass
        if client_publishes and taken < room:
            acme.take(0, now)
            taken += 1


@pytest.mark.parametrize("arrivals_per_s", [100, 120, 500])
def test_backends_get_their_share_however_much_clients_publish(arrivals_per_s: int) -> None:
    acme, now, clients, backends, late = tenant(default_limits(messages_per_s=100)), 100.0, 0, 0, 0

    def admit() -> None:
        nonlocal backends
        backends += 1

    def reject(_: Refused) -> None:
        nonlocal late
        late += 1

    next_client, ask_at = now, 0.0
    while now < 130:
        if now >= next_client:
            next_client += 1 / arrivals_per_s
            with suppress(Refused):
                acme.take(0, now)
                clients += 1
        if not len(acme.publish_queue) and not acme.publish_queue.try_take(0, now):
            with suppress(Refused):
                acme.publish_queue.enqueue(QueuedCall(0, admit, reject), 60, now)
                ask_at = now
        if len(acme.publish_queue) and now >= ask_at:
            ask_at = now + (acme.publish_queue.admit_ready(now) or 60)
        now += 0.001
    assert not late
    assert backends >= 30 * 10 * 0.9
    assert clients >= 30 * 80
    assert clients + backends <= 30 * 100 + 110


def test_backends_publish_at_one_message_per_second() -> None:
    acme = tenant(default_limits(messages_per_s=1))
    assert acme.publish_queue.try_take(0, 100.0)
    assert not acme.publish_queue.try_take(0, 100.5)
    assert acme.publish_queue.try_take(0, 101.1)


def test_few_refusals_leave_at_once_and_many_one_after_the_other() -> None:
    tarpit = Tarpit()
    for _ in range(REFUSALS_PER_S):
        assert tarpit.enter(0, 100.0) == 0
        tarpit.leave(0)
    waits = [tarpit.enter(0, 100.0) for _ in range(300)]
    assert waits == [pytest.approx((number + 1) / REFUSALS_PER_S) for number in range(300)]
    for _ in range(300):
        tarpit.leave(0)
    assert tarpit.enter(0, 102.0) == 0


def test_callers_that_retry_at_once_get_no_more_refusals_however_many_they_are() -> None:
    for callers in (1, 5, 2000):
        tarpit, now, refusals = Tarpit(), 100.0, 0
        due = sorted(now + tarpit.enter(0, now) for _ in range(callers))
        while (now := due.pop(0)) < 110:
            tarpit.leave(0)
            refusals += 1
            # A refusal and the next attempt take a moment.
            now += 0.001
            due.append(now + tarpit.enter(0, now))
            due.sort()
        assert refusals <= 2 * REFUSALS_PER_S * 10 + REFUSALS_PER_S


def test_the_tarpit_is_bounded() -> None:
    tarpit = Tarpit()
    for _ in range(MAX_TARPIT_CALLS):
        tarpit.enter(0, 100.0)
    assert tarpit.enter(0, 100.0) == 0
    tarpit = Tarpit()
    tarpit.enter(MAX_TARPIT_BYTES, 100.0)
    assert tarpit.enter(SMALL_BYTES + 1, 100.0) == 0
    assert tarpit.enter(SMALL_BYTES, 100.0) > 0
    tarpit.leave(MAX_TARPIT_BYTES)
    assert tarpit.enter(SMALL_BYTES + 1, 100.0) > 0
