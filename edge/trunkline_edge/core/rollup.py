"""Deltas are joined in windows: when each ends, and what is given to whom then.

No clock is read here and there is no timer: `next_due` says when `flush_due` is to be called.
Times are seconds of whatever clock the shell uses.
"""

from __future__ import annotations

from trunkline_edge.core.connection import Connection
from trunkline_edge.core.counters import EdgeCounters
from trunkline_edge.core.deltas import DeltaRange
from trunkline_edge.core.subscribers import SubscriberGroup

#: Windows end together, at multiples of this; so many streams share a turn of the loop.
GRID_S = 0.01
#: A window is over so long after its time at least: a delta that comes right at its end is joined, too.
GRACE_S = 0.002
#: What waits in one window is flushed with the batch in which it has become this much.
MAX_WAITING_BYTES = 64 * 1024


class Rollup:
    """The windows of all audiences of one edge. Connections that got something are put into `dirty`."""

    def __init__(self, counts: EdgeCounters, dirty: set[Connection]) -> None:
        self._counts = counts
        self._dirty = dirty
        #: Those to be looked at when the batch ends.
        self._fresh: dict[SubscriberGroup, None] = {}
        #: By the tick of the grid at which their window ends.
        self._due: dict[int, dict[SubscriberGroup, None]] = {}
        #: The first of these ticks, or one before.
        self._next: int | None = None

    @property
    def next_due(self) -> float | None:
        """When `flush_due` is to be called; None where there is nothing to wait for."""
        return None if self._next is None else self._next * GRID_S

    def add(self, audience: SubscriberGroup, addition: DeltaRange) -> None:
        """A delta for an audience; what it had before is joined with it."""
        audience.additions.append(addition)
        audience.waiting_bytes += addition.size
        if audience.due is None or audience.waiting_bytes > MAX_WAITING_BYTES:
            self._fresh[audience] = None

    def end_batch(self, now: float) -> None:
        """Flush what has no window or has become too much, and begin windows for the rest."""
        fresh, self._fresh = self._fresh, {}
        for audience in fresh:
            if not audience.rollup_ms or audience.waiting_bytes > MAX_WAITING_BYTES:
                self.flush(audience, everybody=False)
            elif audience.due is None:
                self._begin(audience, now)

    def _begin(self, audience: SubscriberGroup, now: float) -> None:
        tick = int((now + audience.rollup_ms / 1000 + GRACE_S) / GRID_S) + 1
        audience.due = tick
        self._due.setdefault(tick, {})[audience] = None
        if self._next is None or tick < self._next:
            self._next = tick

    def flush_due(self, now: float) -> None:
        """Flush the audiences whose window is over."""
        for tick in [tick for tick in self._due if tick * GRID_S <= now]:
            for audience in list(self._due[tick]):
                self.flush(audience, everybody=False)
        self._next = min(self._due, default=None)

    def flush(self, audience: SubscriberGroup, everybody: bool) -> None:
        """End an audience's window; see SubscriberGroup.flush."""
        self._end(audience)
        audience.flush(self._counts, everybody)
        self._dirty |= audience.listeners

    def take(self, audience: SubscriberGroup, connection: Connection) -> None:
        """Give one listener what waits for it; the others' window goes on."""
        if len(audience.listeners) == 1:
            self.flush(audience, everybody=True)
        else:
            audience.take(connection, self._counts)
            self._dirty.add(connection)

    def forget(self, audience: SubscriberGroup) -> None:
        """Nobody is left in it."""
        self._end(audience)

    def _end(self, audience: SubscriberGroup) -> None:
        self._fresh.pop(audience, None)
        tick, audience.due = audience.due, None
        if tick is not None:
            del self._due[tick][audience]
            if not self._due[tick]:
                del self._due[tick]
