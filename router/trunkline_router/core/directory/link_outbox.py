"""Entries waiting for one edge."""

from __future__ import annotations

from trunkline.v1.edge_service_pb2 import LinkResponse, RouterEntry
from trunkline_runtime.credited_batch_queue import CreditedBatchQueue

#: Overhead of an entry beside the message in it.
ENTRY_BYTES = 48


class LinkOutbox(CreditedBatchQueue[LinkResponse]):
    """Entries waiting for one edge; see CreditedBatchQueue.

    When it is full, sources are blocked, but what they have under way, bounded by their credit, is still
    accepted. After `discard` everything is dropped.

    `generation` changes with each entry that deltas must not overtake: a delta's entry may be extended
    while it is the one under which the entry was added.
    """

    __slots__ = ("_is_discarded",)

    def __init__(self, max_bytes: int, window: int) -> None:
        super().__init__(LinkResponse, ENTRY_BYTES, max_bytes, window)
        self._is_discarded = False

    def add(self, size: int = 0) -> RouterEntry:
        """Append an entry and return it to be filled in; `size` is that of the message in it."""
        self.generation += 1
        return self.add_delta(size)

    def add_delta(self, size: int) -> RouterEntry:
        """Append an entry for a delta, which leaves `generation` as it is."""
        if self._is_discarded:
            return RouterEntry()
        return self.add_entry(size)  # type: ignore[no-any-return]

    def discard(self) -> None:
        """Drop all entries, now and in future: the stream broke."""
        self._is_discarded = True
        self.clear()
