"""From a position to live without a gap: history and live messages, merged.

Between reading the log and going live, messages are committed that the read did not see. A
`Catchup` is registered with its topic before the log is read, so it is shown every message that is
committed from then on, and keeps it. What was read and what was kept overlap or meet; merged by seq
they must join without a gap, or there was no recovery.
"""

from __future__ import annotations

from collections.abc import Callable

from trunkline_router.core.values.log_records import Entry, EntryKind, Page
from trunkline_router.core.values.topics import Position

#: Room for live messages while the log is read; a catch-up that needs more is lost.
MAX_LIVE_BYTES = 4 << 20


class Catchup:
    """One topic's way from `after` to live.

    `saw` is called for each message committed since; `read` once, with the log's page after `after`.
    Then `missed` is what lies between, or None where it cannot be had.
    """

    __slots__ = ("_live", "_live_bytes", "after", "missed")

    def __init__(self, after: Position) -> None:
        self.after = after
        self.missed: list[Entry] | None = None
        self._live: list[tuple[str, Entry]] | None = []
        self._live_bytes = 0

    def saw(self, position: Position, kind: EntryKind, body: bytes) -> None:
        """An entry was committed while the log is being read; a change is shown with its message."""
        if self._live is None:
            return
        self._live.append((position.epoch, Entry(position.seq, kind, body)))
        self._live_bytes += len(body)
        if self._live_bytes > MAX_LIVE_BYTES:
            self._live = None

    def lose(self) -> None:
        """The log was erased: what was missed cannot be had."""
        self._live = None

    def read(self, page: Page, told: Position) -> None:
        """The log was read. Sets `missed`: all up to `told`, the end of the log as told to listeners.

        The page may hold more than that: what the log has committed and the core has not been told
        of yet, which will be delivered live.
        """
        live, self._live = self._live, None
        if live is None or not page.valid or page.more or self.after.seq > told.seq:
            return
        epoch, seq = page.head.epoch, self.after.seq
        missed = []
        for entry in page.entries:
            if epoch != told.epoch or entry.seq > told.seq:
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
        if epoch == told.epoch and seq < told.seq:
            # The end of the log is known, and what led there is pruned.
            return
        self.missed = missed


class LinkCatchup(Catchup):
    """The catch-up of all listeners of a topic on one link, after the link was down.

    `waiters` are called once it is done: connections that are to join the topic there must not be
    shown what the others have missed, and an ack must not come before what stands ahead of it.
    """

    __slots__ = ("waiters",)

    def __init__(self, after: Position) -> None:
        super().__init__(after)
        self.waiters: list[Callable[[], None]] = []
