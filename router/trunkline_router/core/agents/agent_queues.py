"""The delivery queues of all agents."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from trunkline_router.core.agents.agent_queue import AgentQueue, message_id_of
from trunkline_router.core.agents.lanes import Lanes
from trunkline_router.core.agents.worker import AttachedWorker, LeasedDelivery
from trunkline_router.core.values.stored_records import StoredDelivery


class AgentQueues:
    """Queues of the agents that ever had a worker, and the set of queues to dispatch from.

    A queue is marked whenever it may have become possible to dispatch or load something; `take_ready`
    returns the marked ones.
    """

    def __init__(self, lease_s: float, concurrency_of: Callable[[str, str], int]) -> None:
        """`concurrency_of` a tenant's agent returns its setting, at least 1."""
        self.lease_s = lease_s
        self._concurrency_of = concurrency_of
        #: Messages whose deliveries are being removed from the log; see `AgentQueue.withdrawing`.
        self.withdrawing: dict[str, StoredDelivery | None] = {}
        #: By tenant and agent.
        self._queues: dict[tuple[str, str], AgentQueue] = {}
        self._marked: set[tuple[str, str]] = set()

    def __iter__(self) -> Iterator[AgentQueue]:
        # A copy, as marking may drop a queue.
        return iter(list(self._queues.values()))

    def get(self, tenant: str, agent: str) -> AgentQueue | None:
        """Return the agent's queue, or None if the agent never had a worker."""
        return self._queues.get((tenant, agent))

    def has_workers(self, tenant: str, agent: str) -> bool:
        """Return whether workers are attached for an agent."""
        queue = self._queues.get((tenant, agent))
        return queue is not None and bool(queue.workers)

    def holding(self, leased: LeasedDelivery) -> AgentQueue:
        """Return the queue of a leased delivery."""
        return self._queues[leased.delivery.topic[:2]]

    def of_tenant(self, tenant: str) -> list[AgentQueue]:
        """Return the queues of a tenant's agents."""
        return [queue for queue in self if queue.tenant == tenant]

    # Workers

    def attach(self, worker: AttachedWorker) -> None:
        """Add the worker to the queues of its agents."""
        for agent in worker.agents:
            queue = self._queues.get((worker.tenant, agent))
            if queue is None:
                lanes = Lanes(self._concurrency_of(worker.tenant, agent))
                queue = AgentQueue(worker.tenant, agent, self.lease_s, lanes, withdrawing=self.withdrawing)
                self._queues[worker.tenant, agent] = queue
            queue.is_retired = False
            queue.workers.append(worker)
        self.mark_all_of(worker)

    def detach(self, worker: AttachedWorker) -> None:
        """Remove the worker from the queues of its agents."""
        for agent in worker.agents:
            queue = self._queues[worker.tenant, agent]
            queue.workers.remove(worker)
            self.mark_ready(queue)

    def settings_changed(self, tenant: str) -> None:
        """The settings of a tenant's agents may have changed."""
        for queue in self.of_tenant(tenant):
            queue.set_concurrency(self._concurrency_of(tenant, queue.agent))
            self.mark_ready(queue)

    # Marking

    def mark_ready(self, queue: AgentQueue) -> None:
        """Mark a queue, or drop it if its tenant is gone and it is idle. Dropped queues are ignored."""
        key = (queue.tenant, queue.agent)
        if self._queues.get(key) is not queue:
            # A read of it was under way; the tenant may have been created again, with a queue of its own.
            return
        if queue.is_retired and not queue.workers and not queue.held:
            del self._queues[key]
            return
        self._marked.add(key)

    def mark_all_of(self, worker: AttachedWorker) -> None:
        """Mark the queues of a worker's agents, as its capacity is shared by them."""
        self._marked.update((worker.tenant, agent) for agent in worker.agents)

    def mark_all(self) -> None:
        """Mark every queue: workers that were blocked may take deliveries again."""
        self._marked.update(self._queues)

    def take_ready(self) -> Iterator[AgentQueue]:
        """Unmark and yield each marked queue."""
        while self._marked:
            queue = self._queues.get(self._marked.pop())
            if queue is not None:
                yield queue

    # Deliveries

    def stored(self, delivery: StoredDelivery) -> None:
        """A delivery was committed. Until its agent's first worker attaches, it stays in the log only."""
        queue = self._queues.get(delivery.topic[:2])
        if queue is not None:
            queue.stored(delivery)
            self.mark_ready(queue)

    def requeue(self, delivery: StoredDelivery) -> None:
        """Let a delivery wait again that could not be removed from the log, unless it is being withdrawn."""
        if self.withdrawing and (message_id := message_id_of(delivery)) in self.withdrawing:
            self.withdrawing[message_id] = delivery
            return
        queue = self._queues.get(delivery.topic[:2])
        if queue is not None:
            queue.requeue(delivery)
            self.mark_ready(queue)

    def tenant_erased(self, tenant: str) -> None:
        """Drop the queues of a deleted tenant, those with settlements under way once these end."""
        for queue in self.of_tenant(tenant):
            queue.is_retired = True
            self.mark_ready(queue)
