"""Work for one agent: which delivery goes to which worker, and when again.

A pure machine. Order within a conversation is kept by letting at most one delivery of it be held at
a time. The log is the truth: this queue holds a window of what is unsettled there and asks for more
when it runs low.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from trunkline.v1.agent_service_pb2 import AttachResponse

from router.core.directory import Link
from router.core.journal import StoredDelivery
from router.core.outbox import MAX_BATCH_BYTES
from router.core.topics import TopicKey

#: Deliveries of one agent kept in memory; the rest waits in the log.
WINDOW = 10_000
WINDOW_BYTES = 32 << 20

#: Batches that may wait for one worker before its settlements are read no further.
MAX_CLOSED_BATCHES = 8


class Worker:
    """One attached worker; `outbox` is what waits to be written to it."""

    __slots__ = (
        "_closed",
        "_size",
        "agents",
        "capacity",
        "heard_at",
        "held",
        "held_up_by",
        "ident",
        "outbox",
        "tenant",
    )

    def __init__(self, tenant: str, agents: list[str], capacity: int, ident: str, now: float) -> None:
        self.tenant = tenant
        self.agents = agents
        self.capacity = capacity
        self.ident = ident
        self.heard_at = now
        #: Deliveries it holds. Bounded by its capacity, and so is the outbox.
        self.held: dict[int, Held] = {}
        #: Links whose outboxes its replies have filled.
        self.held_up_by: set[Link] = set()
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
        """Deliveries it can take in addition; none while its replies fill outboxes."""
        return 0 if self.held_up_by else self.capacity - len(self.held)

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


@dataclass(slots=True, eq=False)
class Held:
    """A delivery in a worker's hands."""

    delivery: StoredDelivery
    queue: AgentQueue
    worker: Worker
    lease_ends: float
    #: Its settlement is being committed: the lease no longer counts.
    settling: bool = False
    #: Its log was erased: it is not delivered again.
    erased: bool = False


@dataclass(slots=True, eq=False)
class AgentQueue:
    """Unsettled deliveries of one agent."""

    tenant: str
    agent: str
    lease_s: float
    workers: list[Worker] = field(default_factory=list)
    #: By conversation, in order.
    waiting: dict[TopicKey, deque[StoredDelivery]] = field(default_factory=dict)
    #: Conversations of which a delivery may be handed out.
    ready: deque[TopicKey] = field(default_factory=deque)
    #: By delivery id, the lease that ends first at the front, as all leases are equally long.
    held: dict[int, Held] = field(default_factory=dict)
    busy: set[TopicKey] = field(default_factory=set)
    #: Deliveries that went to a worker before: how often, and to whom last; forgotten once settled.
    attempts: dict[int, tuple[int, Worker]] = field(default_factory=dict)
    waiting_count: int = 0
    waiting_bytes: int = 0
    #: Highest id taken into memory, and highest known to be in the log.
    last_taken: int = 0
    last_stored: int = 0
    #: All that the log holds is in memory; false at first, as the log may hold some from before.
    complete: bool = False
    reading: bool = False
    #: `last_stored` when the read began that is under way.
    known: int = 0
    #: Since then a log was erased, which the read may still have seen.
    stale: bool = False

    def stored(self, delivery: StoredDelivery) -> None:
        """A delivery was committed. It stays in the log only, while not all before it is here."""
        self.last_stored = max(self.last_stored, delivery.delivery_id)
        if delivery.delivery_id <= self.last_taken:
            return
        if self.complete and self.waiting_count < WINDOW and self.waiting_bytes < WINDOW_BYTES:
            self._take(delivery)
        else:
            self.complete = False

    def wants_more(self) -> bool:
        """The log should be read after `last_taken`: call `begin_reading`; the answer goes to `loaded`."""
        low = self.waiting_count < WINDOW // 2 and self.waiting_bytes < WINDOW_BYTES // 2
        return bool(self.workers) and not self.complete and not self.reading and low

    def begin_reading(self) -> None:
        """The log is about to be read."""
        self.reading = True
        self.stale = False
        self.known = self.last_stored

    def loaded(self, deliveries: list[StoredDelivery], limit: int) -> None:
        """What the log holds after `last_taken`, `limit` at most."""
        self.reading = False
        if self.stale:
            return
        for delivery in deliveries:
            self._take(delivery)
        # Since the read began more may have been committed, which the read did not see. What was stored
        # before and was not in it is gone for good: settled, or erased.
        self.complete = len(deliveries) < limit and self.last_stored <= max(self.last_taken, self.known)

    def _take(self, delivery: StoredDelivery) -> None:
        self.last_taken = delivery.delivery_id
        self.last_stored = max(self.last_stored, delivery.delivery_id)
        self._count(delivery, 1)
        queue = self.waiting.get(delivery.topic)
        if queue is not None:
            queue.append(delivery)
            return
        self.waiting[delivery.topic] = deque([delivery])
        if delivery.topic not in self.busy:
            self.ready.append(delivery.topic)

    def dispatch(self, now: float) -> list[Worker]:
        """Hand out what may be handed out, to the freest worker first. Returns who has mail."""
        mailed = []
        while self.ready and any(worker.free > 0 for worker in self.workers):
            topic = self.ready.popleft()
            queue = self.waiting.get(topic)
            if queue is None or topic in self.busy:
                continue
            delivery = queue.popleft()
            worker = self._worker_for(delivery)
            self._hand_out(delivery, worker, now)
            if not queue:
                del self.waiting[topic]
            mailed.append(worker)
        return mailed

    def _worker_for(self, delivery: StoredDelivery) -> Worker:
        """The freest worker; of those with room, not the one that had this delivery and failed it."""
        free = [worker for worker in self.workers if worker.free > 0]
        if len(free) > 1 and delivery.delivery_id in self.attempts:
            _, last = self.attempts[delivery.delivery_id]
            free = [worker for worker in free if worker is not last]
        return max(free, key=lambda worker: worker.free)

    def _count(self, delivery: StoredDelivery, step: int) -> None:
        self.waiting_count += step
        self.waiting_bytes += step * len(delivery.message)

    def _hand_out(self, delivery: StoredDelivery, worker: Worker, now: float) -> None:
        self._count(delivery, -1)
        self.busy.add(delivery.topic)
        held = Held(delivery, self, worker, now + self.lease_s)
        self.held[delivery.delivery_id] = worker.held[delivery.delivery_id] = held
        attempt = self.attempts[delivery.delivery_id][0] + 1 if delivery.delivery_id in self.attempts else 1
        self.attempts[delivery.delivery_id] = (attempt, worker)
        batch = worker.mail(len(delivery.message))
        mail = batch.deliveries.add(delivery_id=delivery.delivery_id, attempt=attempt)
        mail.message.MergeFromString(delivery.message)

    def extend(self, held: Held, now: float) -> None:
        """The worker is still at it."""
        held.lease_ends = now + self.lease_s
        self.held[held.delivery.delivery_id] = self.held.pop(held.delivery.delivery_id)

    def settled(self, held: Held) -> None:
        """The settlement is committed; the conversation's next delivery may go out."""
        self._release(held)
        self.attempts.pop(held.delivery.delivery_id, None)
        self._free(held.delivery.topic)

    def give_back(self, held: Held) -> None:
        """The worker lost it: it is the conversation's next delivery again."""
        self._release(held)
        topic = held.delivery.topic
        if held.erased:
            self.attempts.pop(held.delivery.delivery_id, None)
        else:
            self._count(held.delivery, 1)
            self.waiting.setdefault(topic, deque()).appendleft(held.delivery)
        self._free(topic)

    def expired(self, now: float) -> list[Held]:
        """What is held beyond its lease."""
        found = []
        for held in self.held.values():
            if held.lease_ends > now:
                break
            if not held.settling:
                found.append(held)
        return found

    def erased(self, topic: TopicKey) -> None:
        """The conversation's log was reset, and its unsettled deliveries with it."""
        self.stale = True
        gone = self.waiting.pop(topic, None)
        if gone is not None:
            for delivery in gone:
                self._count(delivery, -1)
                self.attempts.pop(delivery.delivery_id, None)
        for held in self.held.values():
            if held.delivery.topic == topic:
                held.erased = True

    def _release(self, held: Held) -> None:
        del self.held[held.delivery.delivery_id]
        held.worker.held.pop(held.delivery.delivery_id, None)

    def _free(self, topic: TopicKey) -> None:
        self.busy.discard(topic)
        if topic in self.waiting:
            self.ready.append(topic)
