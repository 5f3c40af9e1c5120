"""Delivery queue of one agent: order, leases, retries and the window kept in memory.

A pure state machine. At most one delivery of a conversation is held at a time, which keeps the
conversation in order. The log is the truth: the queue holds a window of the unsettled deliveries and
asks for more when it runs low.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from itertools import takewhile

from trunkline.v1.message_pb2 import Message

from trunkline_router.core.agents.worker import AttachedWorker, LeasedDelivery
from trunkline_router.core.values.stored_records import StoredDelivery
from trunkline_router.core.values.topics import TopicKey

#: Deliveries of one agent kept in memory; the rest wait in the log.
WINDOW = 10_000
WINDOW_BYTES = 32 << 20


@dataclass(slots=True, eq=False)
class AgentQueue:
    """Unsettled deliveries of one agent.

    Beyond WINDOW deliveries or WINDOW_BYTES new deliveries stay in the log only and are read later.
    """

    tenant: str
    agent: str
    lease_s: float
    workers: list[AttachedWorker] = field(default_factory=list)
    #: The tenant was deleted.
    is_retired: bool = False
    #: By conversation, in order.
    waiting: dict[TopicKey, deque[StoredDelivery]] = field(default_factory=dict)
    #: Conversations with a delivery that may be dispatched.
    ready: deque[TopicKey] = field(default_factory=deque)
    #: By delivery id, ordered by end of lease, as all leases are equally long.
    held: dict[int, LeasedDelivery] = field(default_factory=dict)
    busy: set[TopicKey] = field(default_factory=set)
    #: Last worker to fail each delivery, by delivery id; removed once the delivery is settled.
    failed_by: dict[int, AttachedWorker] = field(default_factory=dict)
    #: Conversations that wait for another attempt, with the time when it may start. They are busy.
    delayed: dict[TopicKey, float] = field(default_factory=dict)
    waiting_count: int = 0
    waiting_bytes: int = 0
    #: Highest delivery id loaded into memory, and highest known to be in the log.
    last_loaded: int = 0
    last_stored: int = 0
    #: All deliveries in the log are in memory; False at first, as the log may hold earlier ones.
    is_complete: bool = False
    is_reading: bool = False
    #: `last_stored` when the current read began.
    stored_at_read: int = 0
    #: Deliveries were removed from the log since the current read began, so it may still return them.
    is_read_stale: bool = False
    #: Messages whose deliveries are being removed from the log, shared by all queues; the value is the
    #: delivery if it arrived meanwhile.
    withdrawing: dict[str, StoredDelivery | None] = field(default_factory=dict)

    # Loading

    def stored(self, delivery: StoredDelivery) -> None:
        """A delivery was committed. Keep it in memory if all earlier ones are there and it fits."""
        self.last_stored = max(self.last_stored, delivery.delivery_id)
        if delivery.delivery_id <= self.last_loaded:
            return
        if self.is_complete and self.waiting_count < WINDOW and self.waiting_bytes < WINDOW_BYTES:
            self._load(delivery)
        else:
            self.is_complete = False

    def needs_read(self) -> bool:
        """True if deliveries after `last_loaded` should be read: call `begin_read`, then `read_completed`."""
        is_low = self.waiting_count < WINDOW // 2 and self.waiting_bytes < WINDOW_BYTES // 2
        return bool(self.workers) and not self.is_complete and not self.is_reading and is_low

    def begin_read(self) -> None:
        """Note that a read of the log begins."""
        self.is_reading = True
        self.is_read_stale = False
        self.stored_at_read = self.last_stored

    def read_completed(self, deliveries: list[StoredDelivery], limit: int) -> None:
        """The log returned its deliveries after `last_loaded`, at most `limit`."""
        self.is_reading = False
        if self.is_read_stale:
            return
        for delivery in deliveries:
            self._load(delivery)
        # Deliveries committed since the read began may be missing from it. Those stored before and
        # missing are gone for good: settled or erased.
        seen = max(self.last_loaded, self.stored_at_read)
        self.is_complete = len(deliveries) < limit and self.last_stored <= seen

    def read_failed(self) -> None:
        """The log could not be read; the next tick asks again."""
        self.is_reading = False

    def _load(self, delivery: StoredDelivery) -> None:
        self.last_loaded = delivery.delivery_id
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

    # Dispatching

    def dispatch(self, now: float) -> list[AttachedWorker]:
        """Lease ready deliveries, each to the worker with most capacity. Return workers to write to."""
        written = []
        while self.ready and any(worker.free_capacity > 0 for worker in self.workers):
            topic = self.ready.popleft()
            queue = self.waiting.get(topic)
            if queue is None or topic in self.busy:
                continue
            delivery = queue.popleft()
            worker = self._worker_for(delivery)
            self._lease(delivery, worker, now)
            if not queue:
                del self.waiting[topic]
            written.append(worker)
        return written

    def _worker_for(self, delivery: StoredDelivery) -> AttachedWorker:
        """Return the worker with most capacity, if possible not the one that failed the delivery last."""
        free = [worker for worker in self.workers if worker.free_capacity > 0]
        if len(free) > 1 and delivery.delivery_id in self.failed_by:
            last = self.failed_by[delivery.delivery_id]
            free = [worker for worker in free if worker is not last]
        return max(free, key=lambda worker: worker.free_capacity)

    def _lease(self, delivery: StoredDelivery, worker: AttachedWorker, now: float) -> None:
        self._count(delivery, -1)
        self.busy.add(delivery.topic)
        attempt = delivery.attempts + 1
        batch = worker.batch_for(len(delivery.message))
        sent = batch.deliveries.add(delivery_id=delivery.delivery_id, attempt=attempt).message
        # The only time a delivery on its way to a worker is parsed.
        sent.MergeFromString(delivery.message)
        leased = LeasedDelivery(delivery, worker, sent.id, now + self.lease_s, attempt)
        self.held[delivery.delivery_id] = worker.held[delivery.delivery_id] = leased

    # Leases

    def extend_lease(self, leased: LeasedDelivery, now: float) -> None:
        """Renew the lease: the worker is still processing the delivery."""
        leased.lease_ends = now + self.lease_s
        self.held[leased.id] = self.held.pop(leased.id)

    def expired_leases(self, now: float) -> list[LeasedDelivery]:
        """Return the deliveries held beyond their leases."""
        found = []
        for leased in self.held.values():
            if leased.lease_ends > now:
                break
            if not leased.is_settling:
                found.append(leased)
        return found

    def complete(self, leased: LeasedDelivery) -> None:
        """Release the delivery for good; the conversation's next delivery may be dispatched."""
        self._release(leased)
        self.failed_by.pop(leased.id, None)
        self._free(leased.delivery.topic)

    def retry(self, leased: LeasedDelivery, not_before: float | None = None) -> None:
        """Make a failed delivery the conversation's next one again, from `not_before` on if given."""
        self._release(leased)
        self.failed_by[leased.id] = leased.worker
        topic = leased.delivery.topic
        self.requeue(leased.delivery._replace(attempts=leased.attempt))
        if not_before is None:
            self._free(topic)
        else:
            self.delayed[topic] = not_before

    def requeue(self, delivery: StoredDelivery) -> None:
        """Let the delivery wait again, before later ones of its conversation."""
        self._count(delivery, 1)
        queue = self.waiting.get(delivery.topic)
        if queue is not None:
            earlier = takewhile(lambda each: each.delivery_id < delivery.delivery_id, queue)
            queue.insert(sum(1 for _ in earlier), delivery)
            return
        self.waiting[delivery.topic] = deque([delivery])
        if delivery.topic not in self.busy:
            self.ready.append(delivery.topic)

    def end_delays(self, now: float) -> bool:
        """Free the conversations whose delay has passed. Return whether there were any."""
        over = [topic for topic, not_before in self.delayed.items() if not_before <= now]
        for topic in over:
            del self.delayed[topic]
            self._free(topic)
        return bool(over)

    # Withdrawal and erasure

    def withdraw(self, topic: TopicKey, message_id: str) -> LeasedDelivery | StoredDelivery | None:
        """Remove the message's delivery if it waits, or mark it cancelled if it is held.

        Returns the delivery, or None if it is not in memory. The caller must call
        `withdrawal_committed` once the log has removed it too.
        """
        for leased in self.held.values():
            if leased.delivery.topic == topic and leased.message_id == message_id:
                leased.is_cancelled = True
                return leased
        waiting = self.waiting.get(topic) or deque()
        for delivery in waiting:
            if _message_id(delivery) == message_id:
                waiting.remove(delivery)
                self._drop(delivery)
                if not waiting:
                    del self.waiting[topic]
                if delivery.attempts:
                    self._end_delay(topic)
                return delivery
        return None

    def withdrawal_committed(self) -> None:
        """The log has removed a delivery; a read that began earlier may still return it."""
        self.is_read_stale = True

    def topic_erased(self, topic: TopicKey) -> None:
        """The conversation's log was erased, and its unsettled deliveries with it."""
        self.is_read_stale = True
        self._end_delay(topic)
        for delivery in self.waiting.pop(topic, ()):
            self._drop(delivery)
        for leased in self.held.values():
            if leased.delivery.topic == topic:
                leased.is_erased = True

    def user_erased(self, user: str) -> None:
        """The user's messages were erased, and their deliveries with them."""
        self.is_read_stale = True
        for topic in list(self.waiting):
            erased = {each for each in self.waiting[topic] if _author(each) == user}
            if not erased:
                continue
            self._end_delay(topic)
            for delivery in erased:
                self._drop(delivery)
            left = deque(each for each in self.waiting[topic] if each not in erased)
            if left:
                self.waiting[topic] = left
            else:
                del self.waiting[topic]
        for leased in self.held.values():
            if _author(leased.delivery) == user:
                leased.is_erased = True

    def _count(self, delivery: StoredDelivery, step: int) -> None:
        self.waiting_count += step
        self.waiting_bytes += step * len(delivery.message)

    def _drop(self, delivery: StoredDelivery) -> None:
        self._count(delivery, -1)
        self.failed_by.pop(delivery.delivery_id, None)

    def _end_delay(self, topic: TopicKey) -> None:
        """Free the conversation if it waited for another attempt at a delivery that is gone."""
        if self.delayed.pop(topic, None) is not None:
            self._free(topic)

    def _release(self, leased: LeasedDelivery) -> None:
        del self.held[leased.id]
        leased.worker.held.pop(leased.id, None)

    def _free(self, topic: TopicKey) -> None:
        self.busy.discard(topic)
        if topic in self.waiting:
            self.ready.append(topic)


# Both parse the message: they are for cancels and erasures only.


def _message_id(delivery: StoredDelivery) -> str:
    return Message.FromString(delivery.message).id


def _author(delivery: StoredDelivery) -> str:
    return Message.FromString(delivery.message).author.user
