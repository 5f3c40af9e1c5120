"""Delivery queue of one agent: order, leases, retries and the window kept in memory.

A pure state machine. At most one delivery of a lane is held at a time, which keeps the lane in order. The
log is the truth: the queue holds a window of the unsettled deliveries and asks for more when it runs low.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from trunkline.v1.message_pb2 import Message

from trunkline_router.core.agents.failed_deliveries import FailedDeliveries
from trunkline_router.core.agents.lanes import Lane, Lanes, author_of
from trunkline_router.core.agents.worker import AttachedWorker, LeasedDelivery
from trunkline_router.core.values.log_records import Attempts
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
    #: Waiting deliveries and their order.
    lanes: Lanes
    workers: list[AttachedWorker] = field(default_factory=list)
    #: The tenant was deleted.
    is_retired: bool = False
    #: By delivery id, ordered by end of lease, as all leases are equally long.
    held: dict[int, LeasedDelivery] = field(default_factory=dict)
    #: Deliveries with failed attempts, until they are settled.
    failed: FailedDeliveries = field(default_factory=FailedDeliveries)
    #: Deliveries that `dispatch` dropped, for the caller to remove from the log.
    expired: list[StoredDelivery] = field(default_factory=list)
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
        if self.withdrawing and (message_id := message_id_of(delivery)) in self.withdrawing:
            self.withdrawing[message_id] = delivery
            return
        self._count(delivery, 1)
        self.lanes.add(delivery)
        if delivery.attempts:
            self.failed.loaded(delivery, message_id_of(delivery))

    # Dispatching

    def dispatch(self, now: float, now_ms: int = 0) -> list[AttachedWorker]:
        """Lease ready deliveries, each to the worker with most capacity. Return workers to write to.

        Deliveries that have expired at `now_ms` are dropped and added to `expired` instead.
        """
        written = []
        while self.lanes.ready and any(worker.free_capacity > 0 for worker in self.workers):
            taken = self.lanes.take()
            if taken is None:
                break
            lane, delivery = taken
            if has_expired(delivery, now_ms):
                self._count(delivery, -1)
                self.lanes.release(lane)
                self.lanes.free(lane)
                self.expired.append(delivery)
                continue
            worker = self._worker_for(delivery)
            self._lease(lane, delivery, worker, now)
            written.append(worker)
        return written

    def _worker_for(self, delivery: StoredDelivery) -> AttachedWorker:
        """Return the worker with most capacity, if possible not the one that failed the delivery last."""
        free = [worker for worker in self.workers if worker.free_capacity > 0]
        if len(free) > 1 and (failed := self.failed.get(delivery.delivery_id)):
            free = [worker for worker in free if worker is not failed.worker]
        return max(free, key=lambda worker: worker.free_capacity)

    def _lease(self, lane: Lane, delivery: StoredDelivery, worker: AttachedWorker, now: float) -> None:
        self._count(delivery, -1)
        attempt = delivery.attempts + 1
        batch = worker.batch_for(len(delivery.message))
        sent = batch.deliveries.add(delivery_id=delivery.delivery_id, attempt=attempt).message
        # The only time a delivery on its way to a worker is parsed.
        sent.MergeFromString(delivery.message)
        leased = LeasedDelivery(delivery, lane, worker, sent.id, now + self.lease_s, attempt)
        self.held[delivery.delivery_id] = worker.held[delivery.delivery_id] = leased

    def drop_expired(self, delivery_ids: set[int]) -> list[Attempts]:
        """Drop expired deliveries that no worker has taken; return the attempts at those that one has."""
        for lane, deliveries in list(self.lanes.waiting.items()):
            found = [each for each in deliveries if each.delivery_id in delivery_ids and not each.attempts]
            if found:
                self._remove(lane, found)
        held = [self.held[each] for each in delivery_ids if each in self.held]
        failed = [self.failed.get(each) for each in delivery_ids if each not in self.held]
        return [
            *(Attempts(leased.id, leased.attempt) for leased in held),
            *(Attempts(each.delivery_id, each.attempts) for each in failed if each is not None),
        ]

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
        """Release the delivery for good; the lane's next delivery may be dispatched."""
        self._release(leased)
        self.failed.forget(leased.id)
        self.lanes.free(leased.lane)

    def retry(self, leased: LeasedDelivery, not_before: float | None = None) -> None:
        """Make a failed delivery the lane's next one again, from `not_before` on if given."""
        self._release(leased)
        self.requeue(leased.delivery._replace(attempts=leased.attempt))
        if not_before is None:
            self.lanes.free(leased.lane)
        else:
            self.lanes.delay(leased.lane, not_before)

    def requeue(self, delivery: StoredDelivery) -> None:
        """Let the delivery wait again, before later ones of its lane."""
        self._count(delivery, 1)
        self.lanes.put_back(delivery)

    def end_delays(self, now: float) -> bool:
        """Free the lanes whose delay has passed. Return whether there were any."""
        return self.lanes.end_delays(now)

    def set_concurrency(self, concurrency: int) -> None:
        """Set the number of deliveries of a conversation that workers may hold at a time."""
        if concurrency != self.lanes.concurrency:
            self.lanes = self.lanes.rearranged(concurrency, self.held.values())

    # Withdrawal and erasure

    def withdraw(self, topic: TopicKey, message_id: str) -> LeasedDelivery | StoredDelivery | None:
        """Remove the message's delivery if it waits, or mark it cancelled if it is held.

        Returns the delivery, or None if it is not in memory. The caller must call
        `withdrawal_committed` once the log has removed it too.
        """
        for leased in self.held.values():
            if leased.message_id == message_id and leased.delivery.topic == topic:
                leased.is_cancelled = True
                return leased
        for lane in self.lanes.lanes_of(topic):
            for delivery in self.lanes.waiting[lane]:
                if message_id_of(delivery) == message_id:
                    self._remove(lane, [delivery])
                    return delivery
        return None

    def withdrawal_committed(self) -> None:
        """The log has removed a delivery; a read that began earlier may still return it."""
        self.is_read_stale = True

    def topic_erased(self, topic: TopicKey) -> None:
        """The conversation's log was erased, and its unsettled deliveries with it."""
        self.is_read_stale = True
        for lane in self.lanes.lanes_of(topic):
            self._remove(lane, list(self.lanes.waiting[lane]))
        for leased in self.held.values():
            if leased.delivery.topic == topic:
                leased.is_erased = True

    def user_erased(self, user: str) -> None:
        """The user's messages were erased, and their deliveries with them."""
        self.is_read_stale = True
        for lane, deliveries in list(self.lanes.waiting.items()):
            if erased := [each for each in deliveries if author_of(each) == user]:
                self._remove(lane, erased)
        for leased in self.held.values():
            if author_of(leased.delivery) == user:
                leased.is_erased = True

    def _remove(self, lane: Lane, deliveries: list[StoredDelivery]) -> None:
        self.lanes.remove(lane, deliveries)
        for delivery in deliveries:
            self._count(delivery, -1)
            self.failed.forget(delivery.delivery_id)

    def _count(self, delivery: StoredDelivery, step: int) -> None:
        self.waiting_count += step
        self.waiting_bytes += step * len(delivery.message)

    def _release(self, leased: LeasedDelivery) -> None:
        del self.held[leased.id]
        leased.worker.held.pop(leased.id, None)
        self.lanes.release(leased.lane)


def has_expired(delivery: StoredDelivery, now_ms: int) -> bool:
    """Return whether a delivery is past its time, and no worker has taken it."""
    return 0 < delivery.expires_ms <= now_ms and not delivery.attempts


def message_id_of(delivery: StoredDelivery) -> str:
    """Return the id of the message; parses it."""
    return Message.FromString(delivery.message).id
