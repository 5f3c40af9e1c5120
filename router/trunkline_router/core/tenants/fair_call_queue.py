"""Calls that come faster than they may: each waits for its turn, and whose would come too late is refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from trunkline.v1.catalogue import Refused
from trunkline_runtime.tenant_policy import rate_limited
from trunkline_runtime.token_bucket import RateLimit, TokenBucket

#: A call whose turn would be later is refused.
MAX_WAIT_S = 1.0
#: One whose turn has not come by then, as others drew meanwhile from the same buckets, is refused, too.
MAX_DELAY_S = 2.0
#: Of what passes at least one part in so many is calls, if any wait, however much others draw.
SHARE = 10

#: About so many refusals of one kind are told a second, to callers that wait for them.
REFUSALS_PER_S = 100
#: So many wait for that at most, however much is sent; those that are not small, also of so many bytes.
MAX_RESTING = 10_000
SMALL_BYTES = 4096
MAX_RESTING_BYTES = 64 << 20

_REFUSALS = RateLimit(REFUSALS_PER_S)


class QueuedCall:
    """A call that waits: of how many bytes, and what to do when its turn has come, or will not come."""

    __slots__ = ("come", "latest", "refused", "size")

    def __init__(self, size: float, come: Callable[[], None], refused: Callable[[Refused], None]) -> None:
        self.size = size
        self.come = come
        self.refused = refused
        self.latest = 0.0


class FairCallQueue:
    """Whose turn it is, of those who draw from one meter: first come, first served.

    A call asks to `take`, and where that says no, to `wait`. While any waits, `pass_on` is to be called when
    it last said. What waits is no more than what `rate` lets pass within MAX_WAIT_S. Who else draws from the
    meter leaves calls one part in SHARE.
    """

    __slots__ = ("_bytes", "_meter", "_passed_at", "_waiting", "_whose", "rate", "timer")

    def __init__(self, meter: TokenBucket, whose: str) -> None:
        self.rate = RateLimit()
        #: Whatever is going to call `pass_on`; None where nobody waits.
        self.timer: Any = None
        self._meter = meter
        self._whose = whose
        #: Who came first first.
        self._waiting: dict[QueuedCall, None] = {}
        self._bytes = 0.0
        self._passed_at = 0.0

    def __len__(self) -> int:
        return len(self._waiting)

    def take(self, size: int, now: float) -> bool:
        """Whether a call of so many bytes may go on at once."""
        if self._waiting or self._meter.take(self.rate, size, now):
            return False
        self._passed_at = now
        return True

    def wait(self, turn: QueuedCall, patience_s: float, now: float) -> None:
        """A call that may not go on at once waits, behind those that came before.

        Raises Refused RATE_LIMITED where its turn would not come within MAX_WAIT_S, or within its patience,
        as far as can be known.
        """
        # Nothing waits for more than there can ever be.
        turn.size = self.rate.clamp(turn.size)
        wait_s = self._wait_s(turn.size, now)
        if wait_s > min(MAX_WAIT_S, patience_s):
            raise self._refusal(wait_s)
        turn.latest = now + MAX_DELAY_S
        self._waiting[turn] = None
        self._bytes += turn.size

    def leave(self, turn: QueuedCall) -> None:
        """A call waits no longer, if it did. It may be the others' turn sooner than `pass_on` has said."""
        if turn in self._waiting:
            del self._waiting[turn]
            self._bytes -= turn.size

    def pass_on(self, now: float) -> float:
        """It is the turn of those for whom there is enough in the buckets; others have waited too long.

        Returns after how many seconds to ask again; 0 where nobody waits.
        """
        while self._waiting:
            turn = next(iter(self._waiting))
            wait_s = self._draw(turn, now)
            if wait_s and now < turn.latest:
                return min(wait_s, turn.latest - now)
            self.leave(turn)
            if wait_s:
                turn.refused(self._refusal(max(wait_s, self._wait_s(0, now))))
            else:
                turn.come()
        return 0.0

    def _draw(self, turn: QueuedCall, now: float) -> float:
        """Take what a call needs; otherwise, after how many seconds there may be enough."""
        rate = self.rate
        wait_s = self._meter.take(rate, turn.size, now)
        if wait_s:
            starved_s = self._passed_at + SHARE * max(rate.message_s, turn.size * rate.byte_s) - now
            if starved_s > 0:
                return min(wait_s, starved_s)
            self._meter.charge(rate, 1, turn.size, now)
        self._passed_at = now
        return 0.0

    def charge(self, messages: int, size: int, now: float) -> float:
        """What comes by a stream was taken in any case. Returns for how many seconds to read no more."""
        return self._meter.charge(self.rate, messages, size, now)

    def _wait_s(self, size: float, now: float) -> float:
        return self._meter.wait_s(self.rate, len(self._waiting) + 1, self._bytes + size, now)

    def _refusal(self, wait_s: float) -> Refused:
        return rate_limited(self.rate, wait_s, self._whose)

    def __repr__(self) -> str:
        return f"<Turns of {self._whose}, {self.rate.sentence}; {len(self)} wait>"


class Tarpit:
    """Refused calls that are not told so yet.

    Refusing costs as much as most of what is asked for. Callers who don't slow down by themselves do so by
    being told late, and only about REFUSALS_PER_S a second, however many they are; but for those whose own
    deadlines are shorter than that takes.
    """

    __slots__ = ("_bytes", "_calls", "_meter")

    def __init__(self) -> None:
        self._meter = TokenBucket()
        self._calls = 0
        self._bytes = 0

    def begin(self, size: int, now: float) -> float:
        """A call of so many bytes is refused. Returns after how many seconds to tell it; then comes `end`.

        0 is for those that are few, and for what memory has no room.
        """
        few = not self._calls and not self._meter.take(_REFUSALS, 0, now)
        has_room = self._calls < MAX_RESTING and (
            size <= SMALL_BYTES or self._bytes + size <= MAX_RESTING_BYTES
        )
        self._calls += 1
        self._bytes += size
        # One after the other. Counted are those that still wait, so that who gave up delays nobody.
        return self._calls / REFUSALS_PER_S if has_room and not few else 0.0

    def end(self, size: int) -> None:
        """It was told, or is gone."""
        self._calls -= 1
        self._bytes -= size

    def __repr__(self) -> str:
        return f"<Resting {self._calls} calls, {self._bytes} bytes>"
