"""Backpressure from full link outboxes to the sources that filled them."""

from __future__ import annotations

from trunkline_router.core.directory.connections import Link


class LinkBackpressure:
    """Links whose outboxes are full, each with the sources that it blocks.

    A source is identified by its `blocked_by` set: the source must send no more while any link is in it.
    """

    __slots__ = ("_blocked", "_peers")

    def __init__(self, peers: set[Link]) -> None:
        self._peers = peers
        self._blocked: dict[Link, list[set[Link]]] = {}

    def added(self, link: Link, blocked_by: set[Link]) -> None:
        """The source added an entry to the link's outbox; if that filled it, block the source."""
        self._peers.add(link)
        if link.outbox.is_full and link not in blocked_by:
            blocked_by.add(link)
            self._blocked.setdefault(link, []).append(blocked_by)

    def drained(self, link: Link) -> bool:
        """A batch was written to the link. Returns whether that unblocks any source."""
        if link not in self._blocked or not (link.outbox.has_room or link.is_lost):
            return False
        for blocked_by in self._blocked.pop(link):
            blocked_by.discard(link)
        return True
