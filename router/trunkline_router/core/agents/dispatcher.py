"""Dispatcher of users' messages to the workers attached for their agents."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from trunkline.v1.agent_service_pb2 import AttachHello, AttachRequest
from trunkline_runtime.contract_version import check_peer_version

from trunkline_router.core.agents.agent_queue import AgentQueue
from trunkline_router.core.agents.agent_queues import AgentQueues
from trunkline_router.core.agents.settlement import Settlements
from trunkline_router.core.agents.settlement_commits import AttemptCommit
from trunkline_router.core.agents.worker import AttachedWorker
from trunkline_router.core.commits.commit_queue import AtomicWrite
from trunkline_router.core.commits.delivery_policy import DeliveryPolicy
from trunkline_router.core.commits.effects import Effects, ReadDeliveries
from trunkline_router.core.directory.directory import Directory
from trunkline_router.core.directory.tenant_table import TenantTable
from trunkline_router.core.validation.validator import check
from trunkline_router.core.values.log_records import Attempts, Transaction
from trunkline_router.core.values.stored_records import ExpiredDelivery, StoredDelivery
from trunkline_router.core.values.topics import TopicKey

#: Deliveries read from the log at a time; each may be of 1 MiB.
READ_DELIVERIES = 256


class Dispatcher:
    """Attaches workers, dispatches deliveries to them and ends their leases."""

    def __init__(
        self,
        directory: Directory,
        tenant_table: TenantTable,
        queues: AgentQueues,
        settlements: Settlements,
        delivery_policy: DeliveryPolicy,
        effects: Effects,
        now_ms: Callable[[], int],
    ) -> None:
        self._directory = directory
        self._tenant_table = tenant_table
        self._queues = queues
        self._settlements = settlements
        self._delivery_policy = delivery_policy
        self._effects = effects
        self._now_ms = now_ms
        self.workers: set[AttachedWorker] = set()

    # Workers

    def attached(self, hello: AttachHello, now: float) -> AttachedWorker:
        """A worker has opened a stream. Raises Refused if it may not attach.

        Call `welcomed` once the welcome is written: until then it gets no deliveries.
        """
        check(hello)
        check_peer_version(hello.contract_minor)
        tenant = self._directory.active_tenant(hello.tenant)
        agents = list(dict.fromkeys(hello.agents))
        worker = AttachedWorker(hello.tenant, agents, hello.capacity, hello.worker_id, now)
        self.workers.add(worker)
        self._queues.attach(worker)
        self._tenant_table.agents_attached(tenant, agents)
        return worker

    def welcomed(self, worker: AttachedWorker) -> None:
        """The welcome was written to the worker, which may get deliveries now."""
        worker.is_welcomed = True
        self._queues.mark_all_of(worker)

    def received(self, worker: AttachedWorker, batch: AttachRequest, now: float) -> None:
        """The worker sent a batch."""
        worker.heard_at = now
        if batch.drain:
            worker.is_draining = True
        for delivery_id in batch.extend:
            if leased := worker.held.get(delivery_id):
                self._queues.holding(leased).extend_lease(leased, now)
        for settlement in batch.settlements:
            self._settlements.settle(worker, settlement, now)

    def detached(self, worker: AttachedWorker, now: float) -> None:
        """The worker's stream ended: its deliveries that are not being settled are delivered again."""
        worker.is_attached = False
        self.workers.discard(worker)
        self._effects.writable_peers.discard(worker)
        self._queues.detach(worker)
        for leased in [each for each in worker.held.values() if not each.is_settling]:
            self._settlements.lost(leased, "the worker's stream broke", now)

    # Dispatching

    def dispatch(self, now: float) -> None:
        """Dispatch whatever became ready since the last call."""
        for queue in self._queues.take_ready():
            self._effects.writable_peers.update(queue.dispatch(now, self._now_ms()))
            if queue.expired:
                gone, queue.expired = queue.expired, []
                self._delivery_policy.expire(
                    [ExpiredDelivery(each.delivery_id, queue.tenant, queue.agent) for each in gone]
                )
            if queue.needs_read():
                self._read(queue)

    def _read(self, queue: AgentQueue) -> None:
        queue.begin_read()
        read = partial(self._read_completed, queue)
        effect = ReadDeliveries(
            queue.tenant, queue.agent, queue.last_loaded, READ_DELIVERIES, read, queue.read_failed
        )
        self._effects.reads.append(effect)

    def _read_completed(self, queue: AgentQueue, deliveries: list[StoredDelivery]) -> None:
        queue.read_completed(deliveries, READ_DELIVERIES)
        self._queues.mark_ready(queue)

    def expired(self, deliveries: Sequence[ExpiredDelivery]) -> None:
        """The log has found expired deliveries: drop those that no worker has taken meanwhile.

        An attempt that is being made at another one is noted in the log, so that it does not expire when the
        router restarts.
        """
        by_agent: dict[tuple[str, str], set[int]] = {}
        for each in deliveries:
            by_agent.setdefault((each.tenant, each.agent), set()).add(each.delivery_id)
        taken: list[Attempts] = []
        for agent, delivery_ids in by_agent.items():
            queue = self._queues.get(*agent)
            if queue is not None:
                taken += queue.drop_expired(delivery_ids)
                self._queues.mark_ready(queue)
        if taken:
            self._effects.commit_queue.add_write(AtomicWrite(Transaction(attempts=taken), AttemptCommit()))
        kept = {each.delivery_id for each in taken}
        self._delivery_policy.expire([each for each in deliveries if each.delivery_id not in kept])

    def replayed(self, deliveries: list[StoredDelivery]) -> None:
        """Dead letters of one agent have become deliveries again."""
        for delivery in deliveries:
            self._queues.stored(delivery)

    # Time and erasure

    def tick(self, now: float) -> list[AttachedWorker]:
        """End expired leases. Return the workers that have been silent for a lease."""
        for worker in self.workers:
            # The router does not read from a worker that is blocked or throttled.
            if worker.blocked_by or worker.is_throttled:
                worker.heard_at = now
        silent = [worker for worker in self.workers if worker.heard_at + self._queues.lease_s <= now]
        for worker in silent:
            # Its failed deliveries must not be dispatched to it again.
            worker.is_draining = True
        for queue in self._queues:
            for leased in queue.expired_leases(now):
                self._settlements.lost(leased, "its lease ended", now)
            if queue.end_delays(now) or queue.needs_read():
                self._queues.mark_ready(queue)
        return silent

    def topic_erased(self, topic: TopicKey) -> None:
        """A topic's log was erased, and its unsettled deliveries with it."""
        if queue := self._queues.get(*topic[:2]):
            queue.topic_erased(topic)

    def user_erased(self, tenant: str, user: str) -> None:
        """A user's messages were erased, and their unsettled deliveries with them."""
        for queue in self._queues.of_tenant(tenant):
            queue.user_erased(user)
            self._queues.mark_ready(queue)
