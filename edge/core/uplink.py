"""What waits for the router: entries joined into batches, held back until it has given credit."""

from __future__ import annotations

from collections import deque

from trunkline.v1.edge_service_pb2 import EdgeEntry, LinkRequest

MAX_BATCH_BYTES = 256 * 1024

#: What an entry costs beside the frame it carries.
ENTRY_BYTES = 32


class Uplink:
    """Entries waiting for the router while the link is up, in order.

    Nothing is kept across links: what must not be lost is kept with its connection and is sent
    again. `is_full` beyond `max_bytes`: the edge then reads from no client that sends.
    """

    def __init__(self, max_bytes: int, window: int) -> None:
        self.max_bytes = max_bytes
        self._window = window
        self.is_up = False
        #: Batches that the router will still take.
        self.credit = 0
        #: Credit to give the router with the next batch.
        self.owed = 0
        self._owes_now = False
        self._batches: deque[tuple[LinkRequest, int]] = deque()
        self._open = LinkRequest()
        self._open_bytes = 0
        self._closed_bytes = 0

    def restart(self, is_up: bool) -> None:
        """The link came up or broke: begin with nothing."""
        self.is_up = is_up
        self.credit = self.owed = 0
        self._owes_now = False
        self._batches.clear()
        self._open = LinkRequest()
        self._open_bytes = self._closed_bytes = 0

    def add(self, size: int = 0) -> EdgeEntry:
        """A new entry at the end, to be filled in; `size` is that of the frame it will carry."""
        size += ENTRY_BYTES
        if self._open_bytes and self._open_bytes + size > MAX_BATCH_BYTES:
            self._batches.append((self._open, self._open_bytes))
            self._closed_bytes += self._open_bytes
            self._open = LinkRequest()
            self._open_bytes = 0
        self._open_bytes += size
        return self._open.entries.add()

    @property
    def waiting_bytes(self) -> int:
        """About how many bytes wait."""
        return self._closed_bytes + self._open_bytes

    @property
    def is_full(self) -> bool:
        """Clients that send must be held back."""
        return self.waiting_bytes > self.max_bytes

    @property
    def is_ready(self) -> bool:
        """`take` would return a batch."""
        return bool(self._owes_now or (self.credit and self._open_bytes))

    def owe(self, at_once: bool) -> None:
        """A batch was dealt with. Its credit goes with the next batch; alone only if that is urgent.

        It is once the router has used up half of its window: a message for credit alone costs as much
        as any other.
        """
        self.owed += 1
        self._owes_now = self._owes_now or at_once or self.owed * 2 >= self._window

    def take(self) -> LinkRequest | None:
        """The next batch to write, or None where there is nothing that may be written."""
        if self.credit and self._open_bytes:
            self.credit -= 1
            if self._batches:
                batch, size = self._batches.popleft()
                self._closed_bytes -= size
            else:
                batch, self._open, self._open_bytes = self._open, LinkRequest(), 0
        elif self._owes_now:
            batch = LinkRequest()
        else:
            return None
        batch.credit, self.owed = self.owed, 0
        self._owes_now = False
        return batch
