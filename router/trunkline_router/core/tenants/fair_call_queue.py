"""Fair queues for calls over their rate limit, and a tarpit for refusals."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from trunkline.v1.catalogue import Refused
from trunkline_runtime.tenant_policy import rate_limited
from trunkline_runtime.token_bucket import RateLimit, TokenBucket

#: Reject a call at once if its estimated wait is longer.
MAX_WAIT_S = 1.0
#: Reject a queued call after this long even if the estimate was shorter: others may have drained the bucket.
MAX_DELAY_S = 2.0
#: Queued calls get at least 1/SHARE of the throughput, however much others draw from the bucket.
SHARE = 10

#: Refusals sent per second to callers whose refusals are delayed.
REFUSALS_PER_S = 100
#: Bound of delayed refusals, in calls and, for calls above SMALL_BYTES, in bytes of their requests.
MAX_TARPIT_CALLS = 10_000
SMALL_BYTES = 4096
MAX_TARPIT_BYTES = 64 << 20

_REFUSALS = RateLimit(REFUSALS_PER_S)


class QueuedCall:
    """A call that waits for admission. Unless removed, it gets one call of `admit` or `reject`."""

    __slots__ = ("admit", "deadline", "reject", "size")

    def __init__(self, size: float, admit: Callable[[], None], reject: Callable[[Refused], None]) -> None:
        self.size = size
        self.admit = admit
        self.reject = reject
        self.deadline = 0.0


class FairCallQueue:
    """Calls that share one token bucket, admitted first come, first served.

    Call `try_take`, and `enqueue` if it returns False. While any call waits, call `admit_ready` after the
    delay that it last returned. Bounded by what `rate` lets pass within MAX_WAIT_S. Other users of the
    bucket leave 1/SHARE of the throughput to the queue.
    """

    __slots__ = ("_admitted_at", "_bucket", "_bytes", "_waiting", "_whose", "rate", "timer")

    def __init__(self, bucket: TokenBucket, whose: str) -> None:
        self.rate = RateLimit()
        #: The timer that will call `admit_ready`; None while no call waits.
        self.timer: Any = None
        self._bucket = bucket
        self._whose = whose
        #: Oldest first.
        self._waiting: dict[QueuedCall, None] = {}
        self._bytes = 0.0
        self._admitted_at = 0.0

    def __len__(self) -> int:
        return len(self._waiting)

    def try_take(self, size: int, now: float) -> bool:
        """Take tokens for a call of `size` bytes. Returns False if it must be queued."""
        if self._waiting or self._bucket.take(self.rate, size, now):
            return False
        self._admitted_at = now
        return True

    def enqueue(self, call: QueuedCall, patience_s: float, now: float) -> None:
        """Queue a call behind those that came before.

        Raises Refused RATE_LIMITED if its estimated wait exceeds MAX_WAIT_S or `patience_s`.
        """
        # A bucket never holds more than its depth, so no call waits for more.
        call.size = self.rate.clamp(call.size)
        wait_s = self._wait_s(call.size, now)
        if wait_s > min(MAX_WAIT_S, patience_s):
            raise self._refusal(wait_s)
        call.deadline = now + MAX_DELAY_S
        self._waiting[call] = None
        self._bytes += call.size

    def remove(self, call: QueuedCall) -> None:
        """Remove a call if it waits. Others may then be ready sooner than `admit_ready` returned."""
        if call in self._waiting:
            del self._waiting[call]
            self._bytes -= call.size

    def admit_ready(self, now: float) -> float:
        """Admit calls while the bucket has tokens, and reject those past their deadline.

        Returns the delay in seconds until the next call of this method; 0 if no call waits.
        """
        while self._waiting:
            call = next(iter(self._waiting))
            wait_s = self._take_for(call, now)
            if wait_s and now < call.deadline:
                return min(wait_s, call.deadline - now)
            self.remove(call)
            if wait_s:
                call.reject(self._refusal(max(wait_s, self._wait_s(0, now))))
            else:
                call.admit()
        return 0.0

    def _take_for(self, call: QueuedCall, now: float) -> float:
        """Take tokens for a queued call. Returns 0, or the delay in seconds after which to try again."""
        rate = self.rate
        wait_s = self._bucket.take(rate, call.size, now)
        if wait_s:
            share_due_s = self._admitted_at + SHARE * max(rate.message_s, call.size * rate.byte_s) - now
            if share_due_s > 0:
                return min(wait_s, share_due_s)
            self._bucket.charge(rate, 1, call.size, now)
        self._admitted_at = now
        return 0.0

    def charge(self, messages: int, size: int, now: float) -> float:
        """Charge for messages of a stream, which are already accepted.

        Returns the time in seconds for which the stream must not be read.
        """
        return self._bucket.charge(self.rate, messages, size, now)

    def _wait_s(self, size: float, now: float) -> float:
        return self._bucket.wait_s(self.rate, len(self._waiting) + 1, self._bytes + size, now)

    def _refusal(self, wait_s: float) -> Refused:
        return rate_limited(self.rate, wait_s, self._whose)

    def __repr__(self) -> str:
        return f"<FairCallQueue of {self._whose}, {self.rate.sentence}; {len(self)} waiting>"


class Tarpit:
    """Delays refusals, so that callers that retry at once slow down.

    A refusal costs about as much as a served call. Beyond a few, refusals leave one after the other at
    REFUSALS_PER_S, whatever the number of callers; a caller with a shorter deadline gets its refusal in time.
    """

    __slots__ = ("_bucket", "_bytes", "_calls")

    def __init__(self) -> None:
        self._bucket = TokenBucket()
        self._calls = 0
        self._bytes = 0

    def enter(self, size: int, now: float) -> float:
        """Take in a refused call of `size` bytes; call `leave` when it has its refusal or is gone.

        Returns the delay in seconds; 0 if refusals are few, or if the tarpit is full.
        """
        is_rare = not self._calls and not self._bucket.take(_REFUSALS, 0, now)
        has_room = self._calls < MAX_TARPIT_CALLS and (
            size <= SMALL_BYTES or self._bytes + size <= MAX_TARPIT_BYTES
        )
        self._calls += 1
        self._bytes += size
        # Only calls still waiting count, so a caller that gave up delays nobody.
        return self._calls / REFUSALS_PER_S if has_room and not is_rare else 0.0

    def leave(self, size: int) -> None:
        """A call has its refusal, or is gone."""
        self._calls -= 1
        self._bytes -= size

    def __repr__(self) -> str:
        return f"<Tarpit of {self._calls} calls, {self._bytes} bytes>"
