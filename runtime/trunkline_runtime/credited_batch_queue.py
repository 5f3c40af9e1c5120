"""Outgoing queue of a link: entries batched, and sent as the peer grants credit.

Both ends of the link use one, see EdgeService in the contract.
"""

from __future__ import annotations

from collections import deque
from typing import Any, Generic, TypeVar

#: A batch of this size, encoded as JSON, stays well below an edge's buffer for one client.
MAX_BATCH_BYTES = 256 * 1024

B = TypeVar("B")


class CreditedBatchQueue(Generic[B]):
    """Entries in order, built in place in the batch that will be written, so that nothing is copied.

    A batch is closed at MAX_BATCH_BYTES; all but the last are closed. Adding never fails: once `is_full`,
    beyond `max_bytes`, the caller must stop its producers until `has_room`.
    """

    __slots__ = (
        "_batch",
        "_closed",
        "_closed_bytes",
        "_credit_is_urgent",
        "_entry_bytes",
        "_open",
        "_open_bytes",
        "_window",
        "credit",
        "credit_owed",
        "generation",
        "max_bytes",
    )

    def __init__(self, batch: type[B], entry_bytes: int, max_bytes: int, window: int) -> None:
        """`batch` is the contract's message type; `entry_bytes` is the overhead of one entry.

        `window` is the number of batches that the peer may have in flight.
        """
        self._batch = batch
        self._entry_bytes = entry_bytes
        self.max_bytes = max_bytes
        self._window = window
        #: Increases whenever a new batch is opened.
        self.generation = 0
        self._closed: deque[tuple[B, int]] = deque()
        self.clear()

    def clear(self) -> None:
        """Drop all entries and credit."""
        #: Batches that the peer still accepts.
        self.credit = 0
        #: Credit to return to the peer with the next batch.
        self.credit_owed = 0
        self._credit_is_urgent = False
        self._closed.clear()
        self._closed_bytes = 0
        self._open_batch()

    def _open_batch(self) -> None:
        self._open: Any = self._batch()
        self._open_bytes = 0
        self.generation += 1

    def add_entry(self, size: int) -> Any:
        """Append an entry and return it to be filled in; `size` is that of its content."""
        size += self._entry_bytes
        if self._open_bytes and self._open_bytes + size > MAX_BATCH_BYTES:
            self._closed.append((self._open, self._open_bytes))
            self._closed_bytes += self._open_bytes
            self._open_batch()
        self._open_bytes += size
        return self._open.entries.add()

    def extend_entry(self, size: int) -> bool:
        """Whether an entry of the open batch may grow by `size` bytes; if so, counts them."""
        if self._open_bytes + size > MAX_BATCH_BYTES:
            return False
        self._open_bytes += size
        return True

    @property
    def waiting_bytes(self) -> int:
        """Approximate size of all queued entries."""
        return self._closed_bytes + self._open_bytes

    @property
    def is_full(self) -> bool:
        """Producers must stop."""
        return self._closed_bytes + self._open_bytes > self.max_bytes

    @property
    def has_room(self) -> bool:
        """Producers may continue; well below `is_full`, as hysteresis."""
        return self.waiting_bytes <= self.max_bytes // 2

    @property
    def is_ready(self) -> bool:
        """Whether `take` would return a batch."""
        return bool(self._credit_is_urgent or (self.credit and self._open_bytes))

    def return_credit(self, batches: int = 1, *, urgent: bool = False) -> None:
        """Return credit for received batches, with the next batch; in a batch of its own only if urgent.

        Half of the window is urgent too. Less is not, because a batch for credit alone costs as much as any
        other.
        """
        self.credit_owed += batches
        self._credit_is_urgent = self._credit_is_urgent or urgent or self.credit_owed * 2 >= self._window

    def take(self) -> B | None:
        """Remove and return the next batch to write; None if there is none that may be written.

        A batch with entries consumes one credit. It carries all credit owed.
        """
        batch: Any
        if self.credit and self._open_bytes:
            self.credit -= 1
            if self._closed:
                batch, size = self._closed.popleft()
                self._closed_bytes -= size
            else:
                batch = self._open
                self._open_batch()
        elif self._credit_is_urgent:
            batch = self._batch()
        else:
            return None
        batch.credit, self.credit_owed = self.credit_owed, 0
        self._credit_is_urgent = False
        return batch  # type: ignore[no-any-return]

    def __repr__(self) -> str:
        waiting = f"{self.waiting_bytes} bytes waiting"
        return f"<{type(self).__name__} {waiting}, credit {self.credit}, owed {self.credit_owed}>"
