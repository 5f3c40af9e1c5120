"""One attached worker as the core knows it."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from trunkline.v1.agent_service_pb2 import AttachResponse
from trunkline_runtime.credited_batch_queue import MAX_BATCH_BYTES

from trunkline_router.core.directory.connections import Link

if TYPE_CHECKING:
    from trunkline_router.core.agents.agent_queue import LeasedDelivery

#: Batches that may wait for one worker before its settlements are read no further.
MAX_CLOSED_BATCHES = 8


class AttachedWorker:
    """One attached worker; `outbox` is what waits to be written to it."""

    __slots__ = (
        "_closed",
        "_size",
        "agents",
        "blocked_by",
        "capacity",
        "heard_at",
        "held",
        "ident",
        "is_draining",
        "is_paced",
        "outbox",
        "tenant",
    )

    def __init__(self, tenant: str, agents: list[str], capacity: int, ident: str, now: float) -> None:
        self.tenant = tenant
        self.agents = agents
        self.capacity = capacity
        self.ident = ident
        self.heard_at = now
        #: Deliveries it holds, at most its capacity.
        self.held: dict[int, LeasedDelivery] = {}
        #: Links whose outboxes its replies have filled.
        self.blocked_by: set[Link] = set()
        #: It takes nothing more.
        self.is_draining = False
        #: Nothing is read from it for a while, as its tenant has said too much.
        self.is_paced = False
        self.outbox = AttachResponse()
        self._size = 0
        self._closed: deque[AttachResponse] = deque()

    def mail(self, size: int) -> AttachResponse:
        """The batch to which something of about this size is to be added."""
        if self._size and self._size + size > MAX_BATCH_BYTES:
            self._closed.append(self.outbox)
            self.outbox, self._size = AttachResponse(), 0
        self._size += size
        return self.outbox

    @property
    def is_given_work(self) -> bool:
        """Deliveries wait to be written to it."""
        return bool(self._closed or self.outbox.deliveries)

    @property
    def is_full(self) -> bool:
        """It does not read what it is written: nothing more should be read from it."""
        return len(self._closed) > MAX_CLOSED_BATCHES

    @property
    def free(self) -> int:
        """Deliveries it can take in addition; none while it drains or its replies fill outboxes."""
        return 0 if self.blocked_by or self.is_draining else self.capacity - len(self.held)

    def take(self) -> AttachResponse | None:
        """The next batch to write, or None."""
        if self._closed:
            return self._closed.popleft()
        if not self._size:
            return None
        batch, self.outbox, self._size = self.outbox, AttachResponse(), 0
        return batch

    def __repr__(self) -> str:
        return f"<Worker {self.ident} of {self.tenant}, {len(self.held)} of {self.capacity} held>"
