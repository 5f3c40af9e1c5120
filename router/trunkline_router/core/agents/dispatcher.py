"""Workers and the work of their agents."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from trunkline.v1 import catalogue
from trunkline.v1.agent_service_pb2 import AttachHello, AttachRequest, Settlement, SettlementResult
from trunkline.v1.catalogue import Refused
from trunkline.v1.message_pb2 import Message
from trunkline_runtime.contract_version import check_peer_version
from trunkline_runtime.refusals import to_error

from trunkline_router.core.agents.agent_queue import AgentQueue, LeasedDelivery
from trunkline_router.core.agents.settlement import (
    AttemptCommit,
    DeadLetterCommit,
    RejectionCommit,
    SettlementCommit,
    WithdrawalCommit,
    message_of,
)
from trunkline_router.core.agents.worker import AttachedWorker
from trunkline_router.core.commits.commit_queue import AtomicWrite, CommitQueue
from trunkline_router.core.commits.effects import Read, ReadDeliveries
from trunkline_router.core.directory.directory import Directory
from trunkline_router.core.validation.validator import check
from trunkline_router.core.values.log_records import (
    Attempts,
    DeadLettered,
    PendingEntry,
    StoredDelivery,
    Transaction,
    Withdrawal,
)
from trunkline_router.core.values.topics import TopicKey

#: Deliveries read from the log at a time; each may be of 1 MiB.
READ_DELIVERIES = 256

#: What a result weighs in a batch, about.
RESULT_BYTES = 128


class Dispatcher:
    """Attaches workers, hands out what users say, and takes what workers settle."""

    def __init__(
        self,
        directory: Directory,
        commit_queue: CommitQueue,
        reads: list[Read],
        mail: set[AttachedWorker],
        *,
        lease_s: float,
        max_attempts: int,
        workers: set[AttachedWorker],
    ) -> None:
        self._directory = directory
        self._commit_queue = commit_queue
        #: By tenant and agent.
        self.queues: dict[tuple[str, str], AgentQueue] = {}
        #: Queues with something to hand out.
        self._stirred: set[tuple[str, str]] = set()
        self._reads = reads
        self._mail = mail
        self.lease_s = lease_s
        self._max_attempts = max_attempts
        self.workers = workers
        #: Called with a message that no worker will answer any more.
        self.abandoned: Callable[[TopicKey, str], None] = lambda topic, message_id: None
        #: Messages whose deliveries are being taken out of the log.
        self._withdrawing: dict[str, StoredDelivery | None] = {}

    # Workers

    def attached(self, hello: AttachHello, now: float) -> AttachedWorker:
        """A worker says hello. Raises Refused where it may not attach."""
        check(hello)
        check_peer_version(hello.contract_minor)
        self._directory.tenant(hello.tenant)
        worker = AttachedWorker(
            hello.tenant, list(dict.fromkeys(hello.agents)), hello.capacity, hello.worker_id, now
        )
        self.workers.add(worker)
        for agent in worker.agents:
            name = (worker.tenant, agent)
            queue = self.queues.get(name)
            if queue is None:
                queue = AgentQueue(worker.tenant, agent, self.lease_s, withdrawing=self._withdrawing)
                self.queues[name] = queue
            queue.workers.append(worker)
            self._stirred.add(name)
        return worker

    def detached(self, worker: AttachedWorker) -> None:
        """The worker's stream ended: what it held and had not settled is delivered again."""
        self.workers.discard(worker)
        self._mail.discard(worker)
        for agent in worker.agents:
            self.queues[worker.tenant, agent].workers.remove(worker)
            self._stirred.add((worker.tenant, agent))
        for held in [h for h in worker.held.values() if not h.settling]:
            self.failed(held, "the worker's stream broke")

    def received(self, worker: AttachedWorker, batch: AttachRequest, now: float) -> None:
        """A worker sent a batch."""
        worker.heard_at = now
        if batch.drain:
            worker.is_draining = True
        for delivery_id in batch.extend:
            if held := worker.held.get(delivery_id):
                held.queue.extend(held, now)
        for settlement in batch.settlements:
            try:
                self._settle(worker, settlement, now)
            except Refused as reason:
                self.tell(
                    worker, SettlementResult(delivery_id=settlement.delivery_id, error=to_error(reason))
                )

    # Settling

    def _settle(self, worker: AttachedWorker, settlement: Settlement, now: float) -> None:
        held = worker.held.get(settlement.delivery_id)
        if held is None or held.settling or held.erased:
            if held is not None and not held.settling:
                # What was said since the log was erased has waited for this.
                held.queue.done(held)
                self._stir(held.queue)
            raise catalogue.DELIVERY_NOT_HELD.refused(delivery_id=settlement.delivery_id)
        check(settlement)
        outcome = settlement.WhichOneof("outcome")
        if outcome is not None and not held.cancelled:
            if settlement.replies:
                problem = f"must be empty where {outcome} is set"
                raise catalogue.INVALID_ARGUMENT.refused(field="replies", problem=problem)
            if outcome == "retry":
                self._retry(held, settlement, now)
            else:
                self._reject(held, settlement.reject.reason or "the worker rejected it")
            return
        held.settling = True
        settling = SettlementCommit(self, held)
        entries = []
        if settlement.replies and not held.cancelled:
            said = Message.FromString(held.delivery.message)
            for reply in settlement.replies:
                message = message_of(reply, said, held.queue.agent)
                entries.append(PendingEntry(held.delivery.topic, message, listener=settling))
        transaction = Transaction(entries=entries, settled=[settlement.delivery_id])
        self._commit_queue.add_write(AtomicWrite(transaction, settling))

    def _retry(self, held: LeasedDelivery, settlement: Settlement, now: float) -> None:
        reason = settlement.retry.reason or "the worker asked for another attempt"
        self.failed(held, reason, now + settlement.retry.after_ms / 1000)
        # At once: whatever gets into the log, there is another attempt, or it is a dead letter.
        self.tell(held.worker, SettlementResult(delivery_id=settlement.delivery_id))

    def _reject(self, held: LeasedDelivery, reason: str) -> None:
        held.settling = True
        dead_lettered = DeadLettered(held.delivery.delivery_id, held.attempt, reason)
        self._commit_queue.add_write(
            AtomicWrite(Transaction(dead_lettered=[dead_lettered]), RejectionCommit(self, held))
        )

    def rejected(self, held: LeasedDelivery, result: SettlementResult) -> None:
        """It is on disk that nobody will try to answer any more."""
        self._nobody_answers(held)
        self.settled(held, result)

    def settled(self, held: LeasedDelivery, result: SettlementResult) -> None:
        """The settlement is committed."""
        held.queue.done(held)
        self.tell(held.worker, result)
        self._stir(held.queue)

    def not_settled(self, held: LeasedDelivery, reason: Refused) -> None:
        """The settlement could not be committed: the worker still holds the delivery."""
        held.settling = False
        if held.worker not in self.workers:
            self.failed(held, "the worker's stream broke")
        self.tell(
            held.worker, SettlementResult(delivery_id=held.delivery.delivery_id, error=to_error(reason))
        )

    def tell(self, worker: AttachedWorker, result: SettlementResult) -> None:
        """Tell a worker, if it is still there, what became of a settlement."""
        if worker in self.workers:
            worker.mail(RESULT_BYTES).results.append(result)
            self._mail.add(worker)
            # Its room is for any of its agents.
            self._stirred.update((worker.tenant, agent) for agent in worker.agents)

    # Failing, giving up, withdrawing

    def failed(self, held: LeasedDelivery, reason: str, until: float | None = None) -> None:
        """A worker had a delivery and did not do it: it is delivered again, unless that was the last time."""
        queue = held.queue
        if held.erased or held.cancelled:
            queue.done(held)
        elif held.attempt >= self._max_attempts:
            self._give_up(held, f"after {held.attempt} attempts; the last: {reason}")
        else:
            queue.give_back(held, until)
            attempts = Attempts(held.delivery.delivery_id, held.attempt)
            # Where that does not get into the log, there is at most one attempt more.
            self._commit_queue.add_write(AtomicWrite(Transaction(attempts=[attempts]), AttemptCommit()))
        self._stir(queue)

    def _give_up(self, held: LeasedDelivery, reason: str) -> None:
        held.queue.done(held)
        self._nobody_answers(held)
        dead_lettered = DeadLettered(held.delivery.delivery_id, held.attempt, reason)
        listener = DeadLetterCommit(self, held.queue, held.delivery)
        self._commit_queue.add_write(AtomicWrite(Transaction(dead_lettered=[dead_lettered]), listener))
        self._stir(held.queue)

    def _nobody_answers(self, held: LeasedDelivery) -> None:
        self.abandoned(held.delivery.topic, Message.FromString(held.delivery.message).id)

    def put_back(self, queue: AgentQueue, delivery: StoredDelivery) -> None:
        """What was to be taken out of the log is still there."""
        queue.put_back(delivery)
        self._stir(queue)

    def withdraw(
        self,
        topic: TopicKey,
        message: Message,
        done: Callable[[bool], None] = lambda found: None,
        failed: Callable[[Refused], None] = lambda reason: None,
    ) -> None:
        """Nobody wants an answer to a message any longer: a worker that is at it is told.

        `done` is called once it is on disk that nobody will be asked, with whether somebody was going to
        be, or is at it.
        """
        self._withdrawing.setdefault(message.id)
        queue = self.queues.get(topic[:2])
        found = queue.withdraw(topic, message.id) if queue is not None else None
        if queue is not None:
            self._stir(queue)
        if isinstance(found, LeasedDelivery) and found.worker in self.workers:
            found.worker.mail(RESULT_BYTES).cancelled.append(found.delivery.delivery_id)
            self._mail.add(found.worker)
        withdrawal = Withdrawal(topic, message.position.seq)
        listener = WithdrawalCommit(self, found, withdrawal, message.id, done, failed)
        self._commit_queue.add_write(AtomicWrite(Transaction(withdrawn=[withdrawal]), listener))

    def withdrawn(self, topic: TopicKey, message_id: str) -> StoredDelivery | None:
        """The log has dealt with that. Returns the delivery where it came meanwhile."""
        # Its first worker may have come meanwhile, too.
        queue = self.queues.get(topic[:2])
        if queue is not None:
            queue.withdrawn()
        return self._withdrawing.pop(message_id, None)

    def not_withdrawn(self, found: LeasedDelivery | StoredDelivery | None) -> None:
        """It is still in the log: it is a delivery as it was before."""
        if isinstance(found, LeasedDelivery):
            found.cancelled = False
            is_held = found.delivery.delivery_id in found.queue.held
            if not (is_held or found.settling or found.erased):
                self.put_back(found.queue, found.delivery)
        elif found is not None:
            self.put_back(self.queues[found.topic[:2]], found)

    def replayed(self, deliveries: list[StoredDelivery]) -> None:
        """Dead letters have become deliveries again, all of one agent."""
        for delivery in deliveries:
            queue = self.queues.get(delivery.topic[:2])
            if queue is not None:
                queue.stored(delivery)
                self._stir(queue)

    # Handing out

    def stored(self, delivery: StoredDelivery) -> None:
        """A delivery was committed. Until a worker has attached for its agent, it stays in the log only."""
        name = delivery.topic[:2]
        queue = self.queues.get(name)
        if queue is not None:
            queue.stored(delivery)
            self._stirred.add(name)

    def unblocked(self) -> None:
        """Sources may send again, workers among them: reconsider every queue."""
        self._stirred.update(self.queues)

    def hand_out(self, now: float) -> None:
        """Hand out what has become free to hand out since the last call."""
        while self._stirred:
            queue = self.queues.get(self._stirred.pop())
            if queue is None:
                continue
            self._mail.update(queue.dispatch(now))
            if queue.wants_more():
                queue.begin_reading()
                limit = READ_DELIVERIES
                self._reads.append(
                    ReadDeliveries(
                        queue.tenant,
                        queue.agent,
                        queue.last_taken,
                        limit,
                        partial(self._loaded, queue, limit),
                        partial(self._not_loaded, queue),
                    )
                )

    def _loaded(self, queue: AgentQueue, limit: int, deliveries: list[StoredDelivery]) -> None:
        queue.loaded(deliveries, limit)
        self._stir(queue)

    def _not_loaded(self, queue: AgentQueue) -> None:
        # Asked for again at the next tick.
        queue.reading = False

    def _stir(self, queue: AgentQueue) -> None:
        self._stirred.add((queue.tenant, queue.agent))

    def tick(self, now: float) -> list[AttachedWorker]:
        """Take back what is held beyond its lease. Returns workers that have been silent for as long."""
        for worker in self.workers:
            # From one that is held back nothing can be heard.
            if worker.blocked_by or worker.is_paced:
                worker.heard_at = now
        silent = [worker for worker in self.workers if worker.heard_at + self.lease_s <= now]
        for worker in silent:
            # What it lost is not for itself again.
            worker.is_draining = True
        for queue in self.queues.values():
            for held in queue.expired(now):
                self.failed(held, "its lease ended")
            if queue.due(now) or queue.wants_more():
                self._stir(queue)
        return silent

    def erased(self, topic: TopicKey) -> None:
        """A topic's log was reset, and its unsettled deliveries with it."""
        if queue := self.queues.get((topic[0], topic[1])):
            queue.erased(topic)

    def user_erased(self, tenant: str, user: str) -> None:
        """What a user of a tenant has said was erased, and its unsettled deliveries with it."""
        for queue in self.queues_of(tenant):
            queue.forget(user)
            self._stir(queue)

    def tenant_erased(self, tenant: str) -> None:
        """A tenant is no more; it has no workers any longer."""
        for queue in self.queues_of(tenant):
            if not queue.workers:
                del self.queues[tenant, queue.agent]

    def queues_of(self, tenant: str) -> list[AgentQueue]:
        """The queues of a tenant's agents that ever had a worker."""
        return [queue for queue in self.queues.values() if queue.tenant == tenant]
