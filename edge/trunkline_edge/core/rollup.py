"""Rollup windows: deltas gather for each subscriber group and are delivered when its window ends.

No clock is read here. `next_due` is the time at which the caller calls `flush_due`. Times are in seconds of
the caller's clock.
"""

from __future__ import annotations

from trunkline_edge.core.connection import Connection
from trunkline_edge.core.counters import EdgeCounters
from trunkline_edge.core.deltas import DeltaRange
from trunkline_edge.core.subscribers import SubscriberGroup

#: Windows end at multiples of this, so that many streams share one pass of the loop.
GRID_S = 0.01
#: Added to each window, so that a delta at its very end is joined.
GRACE_S = 0.002
#: A window that holds more is flushed at the end of the batch.
MAX_WAITING_BYTES = 64 * 1024


class Rollup:
    """Rollup windows of all subscriber groups. Connections with new pending data are added to `dirty`."""

    def __init__(self, counts: EdgeCounters, dirty: set[Connection]) -> None:
        self._counts = counts
        self._dirty = dirty
        #: Groups to check when the batch ends.
        self._fresh: dict[SubscriberGroup, None] = {}
        #: Groups by the tick of the grid at which their window ends.
        self._due: dict[int, dict[SubscriberGroup, None]] = {}
        #: Time of the next `flush_due`: that of the first of these ticks, or of an earlier one. None if no
        #: window is open.
        self.next_due: float | None = None

    def add(self, group: SubscriberGroup, delta: DeltaRange) -> None:
        """Queue a delta for a group."""
        group.deltas.append(delta)
        group.waiting_bytes += delta.size
        if group.due is None or group.waiting_bytes > MAX_WAITING_BYTES:
            self._fresh[group] = None

    def end_batch(self, now: float) -> None:
        """Flush groups without a window or with too much waiting, and open windows for the rest."""
        fresh, self._fresh = self._fresh, {}
        for group in fresh:
            if not group.rollup_ms or group.waiting_bytes > MAX_WAITING_BYTES:
                self.flush(group, everybody=False)
            elif group.due is None:
                self._begin(group, now)

    def _begin(self, group: SubscriberGroup, now: float) -> None:
        tick = int((now + group.rollup_ms / 1000 + GRACE_S) / GRID_S) + 1
        group.due = tick
        self._due.setdefault(tick, {})[group] = None
        if self.next_due is None or tick * GRID_S < self.next_due:
            self.next_due = tick * GRID_S

    def flush_due(self, now: float) -> None:
        """Flush the groups whose window has ended."""
        for tick in [tick for tick in self._due if tick * GRID_S <= now]:
            for group in list(self._due[tick]):
                self.flush(group, everybody=False)
        self.next_due = min(self._due) * GRID_S if self._due else None

    def flush(self, group: SubscriberGroup, everybody: bool) -> None:
        """End a group's window; see SubscriberGroup.flush."""
        self._end(group)
        group.flush(self._counts, everybody)
        self._dirty |= group.subscribers

    def flush_one(self, group: SubscriberGroup, connection: Connection) -> None:
        """Deliver to one subscriber what waits for it; the others' window stays open."""
        if len(group.subscribers) == 1:
            self.flush(group, everybody=True)
        else:
            group.flush_one(connection, self._counts)
            self._dirty.add(connection)

    def forget(self, group: SubscriberGroup) -> None:
        """Drop a group that is empty."""
        self._end(group)

    def _end(self, group: SubscriberGroup) -> None:
        self._fresh.pop(group, None)
        tick, group.due = group.due, None
        if tick is not None:
            del self._due[tick][group]
            if not self._due[tick]:
                del self._due[tick]
