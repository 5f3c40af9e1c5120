"""A worker attached to the router, and the deliveries leased to it."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from trunkline.v1.agent_service_pb2 import AttachResponse
from trunkline_runtime.credited_batch_queue import MAX_BATCH_BYTES

from trunkline_router.core.directory.connections import Link
from trunkline_router.core.values.stored_records import StoredDelivery

#: Closed batches that may wait for one worker before the router stops reading its requests.
MAX_CLOSED_BATCHES = 8


@dataclass(slots=True, eq=False)
class LeasedDelivery:
    """A delivery held by a worker until it is settled or its lease ends."""

    delivery: StoredDelivery
    #: See `Lanes`.
    lane: tuple[str | int, ...]
    worker: AttachedWorker
    message_id: str
    lease_ends: float
    #: Number of this attempt, from 1.
    attempt: int
    #: Its settlement is being committed: the lease no longer counts.
    is_settling: bool = False
    #: Its log was erased: it is not delivered again.
    is_erased: bool = False
    #: The message no longer needs an answer: it is not delivered again, and its replies are dropped.
    is_cancelled: bool = False
    #: That is committed: the delivery is no longer in the log.
    is_withdrawn: bool = False
    #: The worker has opened a streamed reply to it.
    is_answered: bool = False

    @property
    def id(self) -> int:
        """Id of the delivery."""
        return self.delivery.delivery_id


class AttachedWorker:
    """One attached worker, its leases and the batches that wait to be written to it.

    Hashed by identity. `batch_for` never refuses: once more than MAX_CLOSED_BATCHES batches wait
    (`is_full`), the runtime stops reading from the worker, which bounds them.
    """

    __slots__ = (
        "_batch",
        "_batch_bytes",
        "_closed",
        "agents",
        "blocked_by",
        "capacity",
        "heard_at",
        "held",
        "is_attached",
        "is_draining",
        "is_throttled",
        "is_welcomed",
        "tenant",
        "worker_id",
    )

    def __init__(self, tenant: str, agents: list[str], capacity: int, worker_id: str, now: float) -> None:
        self.tenant = tenant
        self.agents = agents
        self.capacity = capacity
        self.worker_id = worker_id
        self.heard_at = now
        #: Deliveries that it holds, by id; at most `capacity`.
        self.held: dict[int, LeasedDelivery] = {}
        #: Links whose outboxes its replies have filled; it gets no deliveries until they have room.
        self.blocked_by: set[Link] = set()
        #: Its stream is open.
        self.is_attached = True
        #: The welcome was written to it; before that, it gets no deliveries.
        self.is_welcomed = False
        #: It accepts no more deliveries.
        self.is_draining = False
        #: The runtime has paused reading from it because its tenant exceeded a rate limit.
        self.is_throttled = False
        self._batch = AttachResponse()
        self._batch_bytes = 0
        self._closed: deque[AttachResponse] = deque()

    def batch_for(self, size: int) -> AttachResponse:
        """Return the batch to which the caller adds something of about `size` bytes."""
        if self._batch_bytes and self._batch_bytes + size > MAX_BATCH_BYTES:
            self._closed.append(self._batch)
            self._batch, self._batch_bytes = AttachResponse(), 0
        self._batch_bytes += size
        return self._batch

    def take(self) -> AttachResponse | None:
        """Remove and return the next batch to write, or None if nothing waits."""
        if self._closed:
            return self._closed.popleft()
        if not self._batch_bytes:
            return None
        batch, self._batch, self._batch_bytes = self._batch, AttachResponse(), 0
        return batch

    @property
    def has_deliveries(self) -> bool:
        """Deliveries wait to be written to it."""
        return bool(self._closed or self._batch.deliveries)

    @property
    def is_full(self) -> bool:
        """Too many batches wait: the runtime must read nothing more from it until they are written."""
        return len(self._closed) > MAX_CLOSED_BATCHES

    @property
    def free_capacity(self) -> int:
        """Deliveries that it can take now.

        None until it is welcomed, nor while it drains or its replies fill outboxes.
        """
        if not self.is_welcomed or self.is_draining or self.blocked_by:
            return 0
        return self.capacity - len(self.held)

    def __repr__(self) -> str:
        return f"<AttachedWorker {self.worker_id} of {self.tenant}, {len(self.held)} of {self.capacity} held>"
