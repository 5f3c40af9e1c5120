"""Broadcasts of a publisher on their way to the router. Pure."""

from __future__ import annotations

from collections import deque

from trunkline.v1.broadcast_service_pb2 import BroadcastManyRequest, BroadcastRequest, NumberedBroadcast

#: Bound of a batch, and so of a request. The contract allows 4 MiB.
MAX_BATCH_BYTES = 1 << 20


class PublishQueue:
    """Numbered requests: first unwritten, then unanswered, then gone.

    At most `max_unanswered` are in both states together. Past that `add` raises IndexError; the caller must
    check `is_full` first.
    """

    def __init__(self, max_unanswered: int) -> None:
        self._max_unanswered = max_unanswered
        self._last_number = 0
        self._unwritten: deque[NumberedBroadcast] = deque()
        self._unanswered: dict[int, NumberedBroadcast] = {}
        #: Unwritten requests that were written on an earlier stream.
        self._rewritten: set[int] = set()

    def __repr__(self) -> str:
        return f"<PublishQueue {len(self._unwritten)} unwritten, {len(self._unanswered)} unanswered>"

    def __len__(self) -> int:
        return len(self._unwritten) + len(self._unanswered)

    @property
    def is_full(self) -> bool:
        """Whether another request must wait."""
        return len(self) >= self._max_unanswered

    @property
    def has_unwritten(self) -> bool:
        """Whether `next_batch` would return something."""
        return bool(self._unwritten)

    def add(self, request: BroadcastRequest) -> int:
        """Appends a request; returns its number."""
        if self.is_full:
            raise IndexError(f"{self._max_unanswered} requests are unanswered")
        self._last_number += 1
        self._unwritten.append(NumberedBroadcast(number=self._last_number, request=request))
        return self._last_number

    def next_batch(self) -> BroadcastManyRequest:
        """Returns the unwritten requests in order, up to the bound of a batch, and counts them as written."""
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

    def record_answer(self, number: int) -> bool:
        """Removes a request; False if no request of this number is unanswered."""
        if self._unanswered.pop(number, None) is None:
            return False
        self._rewritten.discard(number)
        return True

    def may_be_committed(self, number: int) -> bool:
        """Whether the request was ever written."""
        return number in self._unanswered or number in self._rewritten

    def stream_lost(self) -> list[int]:
        """Makes unanswered requests with an idempotency key unwritten again, before all others and in order.

        Returns the numbers of those without a key. They are removed, because they may or may not be
        committed.
        """
        again = [each for each in self._unanswered.values() if each.request.idempotency_key]
        gone = [number for number, each in self._unanswered.items() if not each.request.idempotency_key]
        self._unwritten.extendleft(reversed(again))
        self._rewritten.update(each.number for each in again)
        self._unanswered.clear()
        return gone

    def stream_refused(self) -> None:
        """Makes all unanswered requests unwritten again, in order: the router has read none of them."""
        self._unwritten.extendleft(reversed(self._unanswered.values()))
        self._unanswered.clear()

    def clear(self) -> None:
        """Removes all requests."""
        self._unwritten.clear()
        self._unanswered.clear()
        self._rewritten.clear()
