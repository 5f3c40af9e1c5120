"""Catch-up: log history and live messages, merged without a gap.

Messages are committed between reading the log and going live, which the read does not return. A `Catchup`
is registered with its topic before the log is read, so it buffers every entry that is committed from then
on. Read and buffered entries overlap or meet; if merging them by seq leaves a gap, recovery has failed.
"""

from __future__ import annotations

from collections.abc import Callable

from trunkline_router.core.values.log_records import Entry, EntryKind, Page
from trunkline_router.core.values.topics import EMPTY, Position

#: Live entries buffered while the log is read; beyond this, recovery fails.
MAX_LIVE_BYTES = 4 << 20


class Catchup:
    """Recovery of one topic's entries between the position `after` and the live ones.

    Call `add_live` for each entry committed since, and `merge` once with the page after `after`. Then
    `missed` holds the entries in between; None if they cannot be recovered.
    """

    __slots__ = ("_live", "_live_bytes", "after", "missed")

    def __init__(self, after: Position) -> None:
        self.after = after
        self.missed: list[Entry] | None = None
        #: With their epochs; None once recovery has failed.
        self._live: list[tuple[str, Entry]] | None = []
        self._live_bytes = 0

    def add_live(self, position: Position, kind: EntryKind, body: bytes) -> None:
        """Buffer an entry that was committed while the log is read; a change includes its message."""
        if self._live is None:
            return
        self._live.append((position.epoch, Entry(position.seq, kind, body)))
        self._live_bytes += len(body)
        if self._live_bytes > MAX_LIVE_BYTES:
            self._live = None

    def abandon(self) -> None:
        """The log was erased: nothing can be recovered."""
        self._live = None

    def merge(self, page: Page, delivered: Position) -> None:
        """Set `missed` to the entries up to `delivered`, the end of the log as delivered to listeners.

        The page may go further: the core has yet to learn of those commits, and will deliver them live.
        """
        live, self._live = self._live, None
        if live is None or not page.valid or page.more or self.after.seq > delivered.seq:
            return
        if page.is_forked and self.after == EMPTY:
            # Entries after the start may be among those that the log has lost.
            return
        epoch, seq = page.head.epoch, self.after.seq
        missed = []
        for entry in page.entries:
            if epoch != delivered.epoch or entry.seq > delivered.seq:
                break
            if entry.seq != seq + 1:
                return
            seq = entry.seq
            missed.append(entry)
        for live_epoch, entry in live:
            if live_epoch == epoch and entry.seq <= seq:
                continue
            if entry.seq != seq + 1 or (epoch and live_epoch != epoch):
                return
            epoch, seq = live_epoch, entry.seq
            missed.append(entry)
        if epoch == delivered.epoch and seq < delivered.seq:
            # The entries before the end of the log are pruned.
            return
        self.missed = missed


class LinkCatchup(Catchup):
    """Catch-up of all listeners to a topic on one link, after the link was down.

    `waiters` are called once it is done: connections about to subscribe there must not receive what the
    others missed, and an ack must not overtake earlier entries.
    """

    __slots__ = ("waiters",)

    def __init__(self, after: Position) -> None:
        super().__init__(after)
        self.waiters: list[Callable[[], None]] = []
