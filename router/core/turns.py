"""Calls that come faster than they may: each waits for its turn, and whose would come too late is refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from trunkline.v1.catalogue import Refused

from shared.policies import rate_limited
from shared.rates import Meter, Rate

#: A call whose turn would be later is refused.
MAX_WAIT_S = 1.0

#: So many refusals of one kind are told a second.
REFUSALS_PER_S = 100
#: So many, and of so many bytes, wait for that at most: what is in memory is bounded, however much is sent.
MAX_RESTING = 10_000
MAX_RESTING_BYTES = 64 << 20

_REFUSALS = Rate(REFUSALS_PER_S)


class Turn:
    """A call that waits: of how many bytes, and what to do when its turn has come."""

    __slots__ = ("come", "size")

    def __init__(self, size: int, come: Callable[[], None]) -> None:
        self.size = size
        self.come = come


class Turns:
    """Whose turn it is, of those who draw from one meter: first come, first served.

    A call asks to `take`, and where that says no, to `wait`. While any waits, `pass_on` is to be called when
    it last said. What waits is no more than what `rate` lets pass within MAX_WAIT_S.
    """

    __slots__ = ("_bytes", "_meter", "_waiting", "_whose", "rate", "timer")

    def __init__(self, meter: Meter, whose: str) -> None:
        self.rate = Rate()
        #: Whatever is going to call `pass_on`; None where nobody waits.
        self.timer: Any = None
        self._meter = meter
        self._whose = whose
        #: Who came first first.
        self._waiting: dict[Turn, None] = {}
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._waiting)

    def take(self, size: int, now: float) -> bool:
        """Whether a call of so many bytes may go on at once."""
        return not self._waiting and not self._meter.take(self.rate, size, now)

    def wait(self, turn: Turn, patience_s: float, now: float) -> None:
        """A call that may not go on at once waits, behind those that came before.

        Raises Refused RATE_LIMITED where its turn would not come within MAX_WAIT_S, or within its patience;
        where calls differ in size it may come somewhat later.
        """
        wait_s = self._meter.wait_s(self.rate, len(self._waiting) + 1, self._bytes + turn.size, now)
        if wait_s > min(MAX_WAIT_S, patience_s):
            raise self.refused(wait_s)
        self._waiting[turn] = None
        self._bytes += turn.size

    def leave(self, turn: Turn) -> None:
        """A call waits no longer, if it did. It may be the others' turn sooner than `pass_on` has said."""
        if turn in self._waiting:
            del self._waiting[turn]
            self._bytes -= turn.size

    def pass_on(self, now: float) -> float:
        """It is the turn of those for whom there is enough in the buckets.

        Returns after how many seconds there may be enough for the next one; 0 where nobody waits.
        """
        while self._waiting:
            turn = next(iter(self._waiting))
            if wait_s := self._meter.take(self.rate, turn.size, now):
                return wait_s
            self.leave(turn)
            turn.come()
        return 0.0

    def charge(self, messages: int, size: int, now: float) -> float:
        """What comes by a stream was taken in any case. Returns for how many seconds to read no more."""
        return self._meter.charge(self.rate, messages, size, now)

    def refused(self, wait_s: float) -> Refused:
        """The refusal of a call whose turn would be after so many seconds."""
        return rate_limited(self.rate, wait_s, self._whose)

    def __repr__(self) -> str:
        return f"<Turns of {self._whose}, {self.rate.sentence}; {len(self)} wait>"


class Resting:
    """Refused calls that are not told so yet.

    Refusing costs as much as most of what is asked for. Callers who don't slow down by themselves do so by
    being told late, and only about REFUSALS_PER_S a second, however many they are.
    """

    __slots__ = ("_bytes", "_calls", "_meter")

    def __init__(self) -> None:
        self._meter = Meter()
        self._calls = 0
        self._bytes = 0

    def begin(self, size: int, now: float) -> float:
        """A call of so many bytes is refused. Returns after how many seconds to tell it; then comes `end`.

        0 is for those that are few, and for what memory has no room.
        """
        few = not self._calls and not self._meter.take(_REFUSALS, 0, now)
        has_room = self._calls < MAX_RESTING and self._bytes + size <= MAX_RESTING_BYTES
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
