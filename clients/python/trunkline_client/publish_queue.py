"""Which broadcasts are unwritten, which are unanswered, and which survive a broken stream. Pure."""

from __future__ import annotations

from collections import deque

from trunkline.v1.broadcast_service_pb2 import BroadcastManyRequest, BroadcastRequest, NumberedBroadcast

#: Size of the largest batch, and of the largest request. The contract allows 4 MiB and 1 MiB.
MAX_BATCH_BYTES = 1 << 20


class PublishQueue:
    """Numbered requests on their way: first unwritten, then unanswered, then gone.

    At most `max_unanswered` in both states together; past that `add` raises IndexError, and whoever
    adds must ask `is_full` first.
    """

    def __init__(self, max_unanswered: int) -> None:
        self._max_unanswered = max_unanswered
        self._last_number = 0
        self._unwritten: deque[NumberedBroadcast] = deque()
        self._unanswered: dict[int, NumberedBroadcast] = {}

    def __repr__(self) -> str:
        return f"<PublishQueue {len(self._unwritten)} unwritten, {len(self._unanswered)} unanswered>"

    def __len__(self) -> int:
        return len(self._unwritten) + len(self._unanswered)

    @property
    def is_full(self) -> bool:
        """Whether another request has to wait."""
        return len(self) >= self._max_unanswered

    @property
    def has_unwritten(self) -> bool:
        """Whether `next_batch` has something."""
        return bool(self._unwritten)

    def add(self, request: BroadcastRequest) -> int:
        """Appends a request; returns its number."""
        if self.is_full:
            raise IndexError(f"{self._max_unanswered} requests wait for their answers")
        self._last_number += 1
        self._unwritten.append(NumberedBroadcast(number=self._last_number, request=request))
        return self._last_number

    def next_batch(self) -> BroadcastManyRequest:
        """All that is unwritten, in order, up to the bound of a batch; it counts as unanswered now."""
        batch = BroadcastManyRequest()
        size = 0
        while self._unwritten:
            each = self._unwritten[0]
            size += each.ByteSize()
            if size > MAX_BATCH_BYTES and batch.requests:
                break
            self._unanswered[each.number] = self._unwritten.popleft()
            batch.requests.append(each)
        return batch

    def answered(self, number: int) -> bool:
        """Takes out a request; False where none of this number is unanswered."""
        return self._unanswered.pop(number, None) is not None

    def stream_lost(self) -> list[int]:
        """The stream broke: what may be repeated is unwritten again, before all else and in order.

        Returns the numbers of the others, now gone: whether they were taken cannot be known.
        """
        again = [each for each in self._unanswered.values() if each.request.idempotency_key]
        gone = [number for number, each in self._unanswered.items() if not each.request.idempotency_key]
        self._unwritten.extendleft(reversed(again))
        self._unanswered.clear()
        return gone

    def clear(self) -> None:
        """Forgets everything."""
        self._unwritten.clear()
        self._unanswered.clear()
