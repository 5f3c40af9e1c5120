"""Workers and the work of their agents."""

from __future__ import annotations

from functools import partial

from trunkline.v1 import catalogue
from trunkline.v1.agent_service_pb2 import AttachHello, AttachRequest, Reply, Settlement, SettlementResult
from trunkline.v1.catalogue import Refused
from trunkline.v1.message_pb2 import ROLE_AGENT, Message

from router.core.deliveries import AgentQueue, Held, Worker
from router.core.directory import Connection, Directory, Link
from router.core.effects import Read, ReadDeliveries
from router.core.errors import to_proto
from router.core.journal import Draft, StoredDelivery
from router.core.journal_queue import JournalQueue, SettlementUnit
from router.core.limits import check
from router.core.publishing import COMPLETE, Publishing
from router.core.topics import TopicKey

#: Deliveries read from the log at a time; each may be of 1 MiB.
READ_DELIVERIES = 256

#: What a result weighs in a batch, about.
RESULT_BYTES = 128


class Agents:
    """Attaches workers, hands out what users say, and takes what workers settle."""

    def __init__(
        self,
        directory: Directory,
        journal: JournalQueue,
        publishing: Publishing,
        reads: list[Read],
        mail: set[Worker],
        lease_s: float,
    ) -> None:
        self._directory = directory
        self._journal = journal
        self._queues = publishing.queues
        self._stirred = publishing.stirred
        self._reads = reads
        self._mail = mail
        self.lease_s = lease_s
        self.workers: set[Worker] = set()

    def attached(self, hello: AttachHello, now: float) -> Worker:
        """A worker says hello. Raises Refused where it may not attach."""
        check(hello)
        ours = catalogue.CONTRACT_MINOR
        if abs(hello.contract_minor - ours) > 1:
            raise catalogue.INCOMPATIBLE_VERSION.refused(theirs=hello.contract_minor, ours=ours)
        self._directory.tenant(hello.tenant)
        worker = Worker(hello.tenant, list(dict.fromkeys(hello.agents)), hello.capacity, hello.worker_id, now)
        self.workers.add(worker)
        for agent in worker.agents:
            name = (worker.tenant, agent)
            queue = self._queues.get(name)
            if queue is None:
                queue = self._queues[name] = AgentQueue(worker.tenant, agent, self.lease_s)
            queue.workers.append(worker)
            self._stirred.add(name)
        return worker

    def detached(self, worker: Worker) -> None:
        """The worker's stream ended: what it held and had not settled is delivered again."""
        self.workers.discard(worker)
        self._mail.discard(worker)
        for held in [h for h in worker.held.values() if not h.settling]:
            held.queue.give_back(held)
        for agent in worker.agents:
            self._queues[worker.tenant, agent].workers.remove(worker)
            self._stirred.add((worker.tenant, agent))

    def received(self, worker: Worker, batch: AttachRequest, now: float) -> None:
        """A worker sent a batch."""
        worker.heard_at = now
        for delivery_id in batch.extend:
            if held := worker.held.get(delivery_id):
                held.queue.extend(held, now)
        for settlement in batch.settlements:
            try:
                self._settle(worker, settlement)
            except Refused as reason:
                result = worker.mail(RESULT_BYTES).results.add(delivery_id=settlement.delivery_id)
                result.error.CopyFrom(to_proto(reason))
                self._mail.add(worker)

    def _settle(self, worker: Worker, settlement: Settlement) -> None:
        held = worker.held.get(settlement.delivery_id)
        if held is None or held.settling or held.erased:
            raise catalogue.DELIVERY_NOT_HELD.refused(delivery_id=settlement.delivery_id)
        check(settlement)
        held.settling = True
        settling = Settling(self, held)
        drafts = []
        if settlement.replies:
            said = Message.FromString(held.delivery.message)
            for reply in settlement.replies:
                message = _message_of(reply, said, held.queue.agent)
                drafts.append(Draft(held.delivery.topic, message, origin=settling))
        self._journal.add_settlement(SettlementUnit(settlement.delivery_id, drafts, settling))

    def settled(self, held: Held, result: SettlementResult) -> None:
        """The settlement is committed."""
        held.queue.settled(held)
        self._told(held, result)

    def not_settled(self, held: Held, reason: Refused) -> None:
        """The settlement could not be committed: the worker still holds the delivery."""
        held.settling = False
        if held.worker not in self.workers:
            held.queue.give_back(held)
        result = SettlementResult(delivery_id=held.delivery.delivery_id, error=to_proto(reason))
        self._told(held, result)

    def _told(self, held: Held, result: SettlementResult) -> None:
        worker = held.worker
        if worker in self.workers:
            worker.mail(RESULT_BYTES).results.append(result)
            self._mail.add(worker)
            # Its room is for any of its agents.
            self._stirred.update((worker.tenant, agent) for agent in worker.agents)
        self._stirred.add((held.queue.tenant, held.queue.agent))

    def hand_out(self, now: float) -> None:
        """Hand out what has become free to hand out since the last call."""
        while self._stirred:
            queue = self._queues.get(self._stirred.pop())
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
        self._stirred.add((queue.tenant, queue.agent))

    def _not_loaded(self, queue: AgentQueue) -> None:
        # Asked for again at the next tick.
        queue.reading = False

    def tick(self, now: float) -> list[Worker]:
        """Take back what is held beyond its lease. Returns workers that have been silent for as long."""
        for name, queue in self._queues.items():
            for held in queue.expired(now):
                queue.give_back(held)
                self._stirred.add(name)
            if queue.wants_more():
                self._stirred.add(name)
        return [worker for worker in self.workers if worker.heard_at + self.lease_s <= now]

    def erased(self, topic: TopicKey) -> None:
        """A topic's log was reset, and its unsettled deliveries with it."""
        if queue := self._queues.get((topic[0], topic[1])):
            queue.erased(topic)

    def queues_of(self, tenant: str) -> list[AgentQueue]:
        """The queues of a tenant's agents that ever had a worker."""
        return [queue for queue in self._queues.values() if queue.tenant == tenant]


class Settling:
    """Origin of a settlement's replies; collects what is told to the worker."""

    __slots__ = ("_agents", "_held", "result")

    connection: Connection | None = None

    def __init__(self, agents: Agents, held: Held) -> None:
        self._agents = agents
        self._held = held
        self.result = SettlementResult(delivery_id=held.delivery.delivery_id)

    @property
    def held_up_by(self) -> set[Link]:
        """A worker whose replies fill outboxes is handed nothing more for now."""
        return self._held.worker.held_up_by

    def committed(self, draft: Draft) -> None:
        """One of the replies is on disk."""
        self.result.replies.add(message_id=draft.message.id, position=draft.message.position)

    def refused(self, draft: Draft, reason: Refused) -> None:
        """One of the replies is not; `failed` tells the worker of all."""

    def done(self) -> None:
        """All of the settlement is on disk."""
        self._agents.settled(self._held, self.result)

    def failed(self, reason: Refused) -> None:
        """None of it is."""
        self._agents.not_settled(self._held, reason)


def _message_of(reply: Reply, said: Message, agent: str) -> Message:
    message = Message(address=said.address, parts=reply.parts, reply_to=said.id, state=COMPLETE)
    message.author.role = ROLE_AGENT
    message.author.name = reply.name or agent
    if reply.attributes:
        message.attributes.update(reply.attributes)
    return message
