"""What waits at one end of a link: entries joined into batches, held back until the other end gives credit.

Both ends of the link are these: see EdgeService in the contract.
"""

from __future__ import annotations

from collections import deque
from typing import Any, Generic, TypeVar

#: Small enough that a batch, encoded as JSON, stays well below what an edge buffers for one client.
MAX_BATCH_BYTES = 256 * 1024

B = TypeVar("B")


class CreditedBatchQueue(Generic[B]):
    """Entries in order, built in place in the batch that will be written, so that nothing is copied.

    A batch is closed when it reaches MAX_BATCH_BYTES; all but the last are closed. Adding never fails:
    once `is_full`, beyond `max_bytes`, whoever is the cause is to be held back until `has_room`.
    """

    __slots__ = (
        "_batch",
        "_closed",
        "_closed_bytes",
        "_entry_bytes",
        "_open",
        "_open_bytes",
        "_owes_now",
        "_window",
        "credit",
        "mark",
        "max_bytes",
        "owed",
    )

    def __init__(self, batch: type[B], entry_bytes: int, max_bytes: int, window: int) -> None:
        """`batch` is the contract's message, `entry_bytes` what an entry costs beside what it carries.

        `window` is how many batches the other end may have under way.
        """
        self._batch = batch
        self._entry_bytes = entry_bytes
        self.max_bytes = max_bytes
        self._window = window
        #: Changes whenever another batch is begun.
        self.mark = 0
        self._closed: deque[tuple[B, int]] = deque()
        self.clear()

    def clear(self) -> None:
        """Begin with nothing."""
        #: Batches that the other end will still take.
        self.credit = 0
        #: Credit to give the other end with the next batch.
        self.owed = 0
        self._owes_now = False
        self._closed.clear()
        self._closed_bytes = 0
        self._begin()

    def _begin(self) -> None:
        self._open: Any = self._batch()
        self._open_bytes = 0
        self.mark += 1

    def add_entry(self, size: int) -> Any:
        """A new entry at the end, to be filled in; `size` is that of what it will carry."""
        size += self._entry_bytes
        if self._open_bytes and self._open_bytes + size > MAX_BATCH_BYTES:
            self._closed.append((self._open, self._open_bytes))
            self._closed_bytes += self._open_bytes
            self._begin()
        self._open_bytes += size
        return self._open.entries.add()

    def extend_entry(self, size: int) -> bool:
        """Whether an entry of the open batch may grow by so much; counts that in."""
        if self._open_bytes + size > MAX_BATCH_BYTES:
            return False
        self._open_bytes += size
        return True

    @property
    def waiting_bytes(self) -> int:
        """About how many bytes wait."""
        return self._closed_bytes + self._open_bytes

    @property
    def is_full(self) -> bool:
        """Whoever adds must be held back."""
        return self._closed_bytes + self._open_bytes > self.max_bytes

    @property
    def has_room(self) -> bool:
        """Those held back may go on; well below `is_full`, so that they do not flap."""
        return self.waiting_bytes <= self.max_bytes // 2

    @property
    def is_ready(self) -> bool:
        """`take` would return a batch."""
        return bool(self._owes_now or (self.credit and self._open_bytes))

    def owe(self, batches: int = 1, *, at_once: bool = False) -> None:
        """So many batches were dealt with. Their credit goes with the next batch; alone only if urgent.

        It is urgent once the other end has used up half of its window: a message for credit alone costs
        as much as any other.
        """
        self.owed += batches
        self._owes_now = self._owes_now or at_once or self.owed * 2 >= self._window

    def take(self) -> B | None:
        """The next batch to write, or None where there is nothing that may be written.

        Costs one credit where the batch has entries; carries all credit owed.
        """
        batch: Any
        if self.credit and self._open_bytes:
            self.credit -= 1
            if self._closed:
                batch, size = self._closed.popleft()
                self._closed_bytes -= size
            else:
                batch = self._open
                self._begin()
        elif self._owes_now:
            batch = self._batch()
        else:
            return None
        batch.credit, self.owed = self.owed, 0
        self._owes_now = False
        return batch  # type: ignore[no-any-return]

    def __repr__(self) -> str:
        waiting = f"{self.waiting_bytes} bytes waiting"
        return f"<{type(self).__name__} {waiting}, credit {self.credit}, owed {self.owed}>"
