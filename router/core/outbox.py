"""What waits for one peer: entries joined into batches, held back until the peer has given credit."""

from __future__ import annotations

from collections import deque

from trunkline.v1.edge_service_pb2 import LinkResponse, RouterEntry

#: Small enough that a batch, encoded as JSON, stays well below what an edge buffers for one client.
MAX_BATCH_BYTES = 256 * 1024

#: What an entry costs beside the message it carries.
ENTRY_BYTES = 48


class LinkOutbox:
    """Entries waiting for one edge, in order.

    Entries are built in place in the batch that will be written, so nothing is copied. A batch is
    closed when it reaches MAX_BATCH_BYTES; all but the last are closed. `is_full` once `max_bytes` wait: then
    whoever sends to this edge must be held back until `has_room`. Adding never fails: what is under
    way when the outbox fills, at most the credit of those who send, is still taken. After `discard`
    nothing is kept any longer.
    """

    __slots__ = (
        "_closed",
        "_closed_bytes",
        "_is_discarded",
        "_open",
        "_open_bytes",
        "_window",
        "credit",
        "max_bytes",
        "owed",
    )

    def __init__(self, max_bytes: int, window: int) -> None:
        self.max_bytes = max_bytes
        self._window = window
        #: Batches that the peer will still take.
        self.credit = 0
        #: Credit to give the peer with the next batch.
        self.owed = 0
        self._open = LinkResponse()
        self._open_bytes = 0
        self._closed: deque[tuple[LinkResponse, int]] = deque()
        self._closed_bytes = 0
        self._is_discarded = False

    def add(self, size: int = 0) -> RouterEntry:
        """A new entry at the end, to be filled in; `size` is that of the message it will carry."""
        if self._is_discarded:
            return RouterEntry()
        size += ENTRY_BYTES
        if self._open_bytes and self._open_bytes + size > MAX_BATCH_BYTES:
            self._closed.append((self._open, self._open_bytes))
            self._closed_bytes += self._open_bytes
            self._open = LinkResponse()
            self._open_bytes = 0
        self._open_bytes += size
        return self._open.entries.add()

    def discard(self) -> None:
        """The stream is gone: drop what waits, and whatever is added from now on."""
        self._is_discarded = True
        self._closed.clear()
        self._open = LinkResponse()
        self._open_bytes = self._closed_bytes = self.credit = self.owed = 0

    @property
    def waiting_bytes(self) -> int:
        """About how many bytes wait."""
        return self._closed_bytes + self._open_bytes

    @property
    def is_full(self) -> bool:
        """Senders must be held back."""
        return self.waiting_bytes > self.max_bytes

    @property
    def has_room(self) -> bool:
        """Senders that were held back may go on; well below `is_full`, so that they do not flap."""
        return self.waiting_bytes <= self.max_bytes // 2

    @property
    def is_ready(self) -> bool:
        """`take` would return a batch."""
        return bool(self._owes_now or (self.credit and self._open_bytes))

    @property
    def _owes_now(self) -> bool:
        """Credit goes with the next batch; alone only once the peer has used up half of its window,
        as a message for credit alone costs as much as any other."""
        return self.owed * 2 >= self._window

    def take(self) -> LinkResponse | None:
        """The next batch to write, or None where there is nothing that may be written.

        Costs one credit where the batch has entries; carries all credit owed to the peer.
        """
        if self.credit and self._open_bytes:
            self.credit -= 1
            if self._closed:
                batch, size = self._closed.popleft()
                self._closed_bytes -= size
            else:
                batch, self._open, self._open_bytes = self._open, LinkResponse(), 0
        elif self._owes_now:
            batch = LinkResponse()
        else:
            return None
        batch.credit, self.owed = self.owed, 0
        return batch

    def __repr__(self) -> str:
        return f"<LinkOutbox {self.waiting_bytes} bytes waiting, credit {self.credit}, owed {self.owed}>"
