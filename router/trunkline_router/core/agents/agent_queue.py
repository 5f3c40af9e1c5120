"""Work for one agent: which delivery goes to which worker, and when again.

A pure machine. Order within a conversation is kept by letting at most one delivery of it be held at
a time. The log is the truth: this queue holds a window of what is unsettled there and asks for more
when it runs low.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from itertools import takewhile

from trunkline.v1.message_pb2 import Message

from trunkline_router.core.agents.worker import AttachedWorker
from trunkline_router.core.values.log_records import StoredDelivery
from trunkline_router.core.values.topics import TopicKey

#: Deliveries of one agent kept in memory; the rest waits in the log.
WINDOW = 10_000
WINDOW_BYTES = 32 << 20


@dataclass(slots=True, eq=False)
class LeasedDelivery:
    """A delivery in a worker's hands."""

    delivery: StoredDelivery
    queue: AgentQueue
    worker: AttachedWorker
    lease_ends: float
    #: Which attempt this is.
    attempt: int
    #: Its settlement is being committed: the lease no longer counts.
    settling: bool = False
    #: Its log was erased: it is not delivered again.
    erased: bool = False
    #: Nobody wants an answer any longer: it is not delivered again, and replies are dropped.
    cancelled: bool = False
    #: The worker has opened a streamed reply to it.
    answered: bool = False


@dataclass(slots=True, eq=False)
class AgentQueue:
    """Unsettled deliveries of one agent."""

    tenant: str
    agent: str
    lease_s: float
    workers: list[AttachedWorker] = field(default_factory=list)
    #: By conversation, in order.
    waiting: dict[TopicKey, deque[StoredDelivery]] = field(default_factory=dict)
    #: Conversations of which a delivery may be handed out.
    ready: deque[TopicKey] = field(default_factory=deque)
    #: By delivery id, the lease that ends first at the front, as all leases are equally long.
    held: dict[int, LeasedDelivery] = field(default_factory=dict)
    busy: set[TopicKey] = field(default_factory=set)
    #: Deliveries that failed: the worker that had each last; forgotten once settled.
    failed_by: dict[int, AttachedWorker] = field(default_factory=dict)
    #: Conversations that wait for another attempt at a delivery: until when. They are busy.
    delayed: dict[TopicKey, float] = field(default_factory=dict)
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
    #: Since then something was taken out of the log, which the read may still have seen.
    stale: bool = False
    #: Messages whose deliveries are being taken out of the log, shared by all queues; with the delivery
    #: where it came meanwhile.
    withdrawing: dict[str, StoredDelivery | None] = field(default_factory=dict)

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
        if self.withdrawing and (message_id := _message_id(delivery)) in self.withdrawing:
            self.withdrawing[message_id] = delivery
            return
        self._count(delivery, 1)
        queue = self.waiting.get(delivery.topic)
        if queue is not None:
            queue.append(delivery)
            return
        self.waiting[delivery.topic] = deque([delivery])
        if delivery.topic not in self.busy:
            self.ready.append(delivery.topic)

    def dispatch(self, now: float) -> list[AttachedWorker]:
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

    def _worker_for(self, delivery: StoredDelivery) -> AttachedWorker:
        """The freest worker; of those with room, not the one that had this delivery and failed it."""
        free = [worker for worker in self.workers if worker.free > 0]
        if len(free) > 1 and delivery.delivery_id in self.failed_by:
            last = self.failed_by[delivery.delivery_id]
            free = [worker for worker in free if worker is not last]
        return max(free, key=lambda worker: worker.free)

    def _count(self, delivery: StoredDelivery, step: int) -> None:
        self.waiting_count += step
        self.waiting_bytes += step * len(delivery.message)

    def _hand_out(self, delivery: StoredDelivery, worker: AttachedWorker, now: float) -> None:
        self._count(delivery, -1)
        self.busy.add(delivery.topic)
        attempt = delivery.attempts + 1
        held = LeasedDelivery(delivery, self, worker, now + self.lease_s, attempt)
        self.held[delivery.delivery_id] = worker.held[delivery.delivery_id] = held
        batch = worker.mail(len(delivery.message))
        mail = batch.deliveries.add(delivery_id=delivery.delivery_id, attempt=attempt)
        mail.message.MergeFromString(delivery.message)

    def extend(self, held: LeasedDelivery, now: float) -> None:
        """The worker is still at it."""
        held.lease_ends = now + self.lease_s
        self.held[held.delivery.delivery_id] = self.held.pop(held.delivery.delivery_id)

    def done(self, held: LeasedDelivery) -> None:
        """It is not delivered again; the conversation's next delivery may go out."""
        self._release(held)
        self.failed_by.pop(held.delivery.delivery_id, None)
        self._free(held.delivery.topic)

    def give_back(self, held: LeasedDelivery, until: float | None = None) -> None:
        """The worker failed it: it is the conversation's next delivery again, perhaps not before a time."""
        self._release(held)
        self.failed_by[held.delivery.delivery_id] = held.worker
        self.put_back(held.delivery._replace(attempts=held.attempt))
        if until is None:
            self._free(held.delivery.topic)
        else:
            self.delayed[held.delivery.topic] = until

    def put_back(self, delivery: StoredDelivery) -> None:
        """It waits again, before what was said after it."""
        self._count(delivery, 1)
        queue = self.waiting.get(delivery.topic)
        if queue is not None:
            earlier = takewhile(lambda each: each.delivery_id < delivery.delivery_id, queue)
            queue.insert(sum(1 for _ in earlier), delivery)
            return
        self.waiting[delivery.topic] = deque([delivery])
        if delivery.topic not in self.busy:
            self.ready.append(delivery.topic)

    def due(self, now: float) -> bool:
        """Let delayed conversations go on whose time has come; whether there were any."""
        over = [topic for topic, until in self.delayed.items() if until <= now]
        for topic in over:
            del self.delayed[topic]
            self._free(topic)
        return bool(over)

    def withdraw(self, topic: TopicKey, message_id: str) -> LeasedDelivery | StoredDelivery | None:
        """Nobody wants an answer to this message: take it out if it waits, mark it if it is held.

        `withdrawn` is to be called once it is out of the log, too.
        """
        for held in self.held.values():
            if held.delivery.topic == topic and _message_id(held.delivery) == message_id:
                held.cancelled = True
                return held
        waiting = self.waiting.get(topic) or deque()
        for delivery in waiting:
            if _message_id(delivery) == message_id:
                waiting.remove(delivery)
                self._count(delivery, -1)
                self.failed_by.pop(delivery.delivery_id, None)
                if not waiting:
                    del self.waiting[topic]
                if delivery.attempts:
                    self._end_delay(topic)
                return delivery
        return None

    def withdrawn(self) -> None:
        """The log has dealt with it; a read under way may have seen it still."""
        self.stale = True

    def expired(self, now: float) -> list[LeasedDelivery]:
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
        self._end_delay(topic)
        gone = self.waiting.pop(topic, None)
        if gone is not None:
            for delivery in gone:
                self._count(delivery, -1)
                self.failed_by.pop(delivery.delivery_id, None)
        for held in self.held.values():
            if held.delivery.topic == topic:
                held.erased = True

    def forget(self, user: str) -> None:
        """What a user has said was erased, and the deliveries of it."""
        self.stale = True
        for topic in list(self.waiting):
            gone = {each for each in self.waiting[topic] if _author(each) == user}
            if not gone:
                continue
            self._end_delay(topic)
            for delivery in gone:
                self._count(delivery, -1)
                self.failed_by.pop(delivery.delivery_id, None)
            left = deque(each for each in self.waiting[topic] if each not in gone)
            if left:
                self.waiting[topic] = left
            else:
                del self.waiting[topic]
        for held in self.held.values():
            if _author(held.delivery) == user:
                held.erased = True

    def _end_delay(self, topic: TopicKey) -> None:
        """What the conversation waits for is gone."""
        if self.delayed.pop(topic, None) is not None:
            self._free(topic)

    def _release(self, held: LeasedDelivery) -> None:
        del self.held[held.delivery.delivery_id]
        held.worker.held.pop(held.delivery.delivery_id, None)

    def _free(self, topic: TopicKey) -> None:
        self.busy.discard(topic)
        if topic in self.waiting:
            self.ready.append(topic)


def _message_id(delivery: StoredDelivery) -> str:
    return Message.FromString(delivery.message).id


def _author(delivery: StoredDelivery) -> str:
    return Message.FromString(delivery.message).author.user
