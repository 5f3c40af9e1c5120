"""What waits for one edge."""

from __future__ import annotations

from trunkline.v1.edge_service_pb2 import LinkResponse, RouterEntry
from trunkline_runtime.credited_batch_queue import CreditedBatchQueue

#: What an entry costs beside the message it carries.
ENTRY_BYTES = 48


class LinkOutbox(CreditedBatchQueue[LinkResponse]):
    """Entries waiting for one edge; see LinkBatches.

    What is under way when it fills, at most the credit of those who send, is still taken. After
    `discard` nothing is kept any longer.

    `mark` changes also with each entry that deltas may not be moved across: an entry with a delta that
    was added under the same mark may still be extended.
    """

    __slots__ = ("_is_discarded",)

    def __init__(self, max_bytes: int, window: int) -> None:
        super().__init__(LinkResponse, ENTRY_BYTES, max_bytes, window)
        self._is_discarded = False

    def add(self, size: int = 0) -> RouterEntry:
        """A new entry at the end, to be filled in; `size` is that of the message it will carry."""
        self.generation += 1
        return self.add_delta(size)

    def add_delta(self, size: int) -> RouterEntry:
        """A new entry for a delta, beside others of the same mark."""
        if self._is_discarded:
            return RouterEntry()
        return self.add_entry(size)  # type: ignore[no-any-return]

    def discard(self) -> None:
        """The stream is gone: drop what waits, and whatever is added from now on."""
        self._is_discarded = True
        self.clear()
