"""Delivery policy: which messages get a delivery, and when it expires if no worker takes it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from trunkline.v1.message_pb2 import (
    WITHOUT_WORKER_KEEP,
    WITHOUT_WORKER_SKIP,
    WithoutWorker,
)

from trunkline_router.core.commits.commit_queue import AtomicWrite
from trunkline_router.core.commits.effects import CountWaiting, Effects
from trunkline_router.core.tenants.tenant import Tenant
from trunkline_router.core.values.log_records import PendingEntry, Transaction
from trunkline_router.core.values.stored_records import ExpiredDelivery

#: Agents whose waiting deliveries are estimated. Beyond it the oldest estimate is dropped, and made again.
MAX_AGENTS = 100_000

_Agent = tuple[str, str]


class _Waiting:
    """Waiting deliveries of one agent: the last count, and those added since it began."""

    __slots__ = ("added", "counted", "expired", "is_counting", "overflowed", "skipped")

    def __init__(self) -> None:
        self.counted = 0
        self.added = 0
        self.is_counting = False
        # Since the router started.
        self.expired = 0
        self.skipped = 0
        self.overflowed = 0


class DeliveryPolicy:
    """Decides about the delivery of each message when it is accepted.

    Deliveries that wait are estimated from the last count of the log and from those added since, and counted
    again when the estimate reaches the agent's bound. While the last count has reached it, messages get no
    delivery, but are committed all the same, and there is at most one count between two ticks. Deliveries
    that are being committed during a count are not in it, so the bound may be exceeded by that many.

    `is_attended` returns whether an agent has a worker.
    """

    def __init__(self, effects: Effects, is_attended: Callable[[str, str], bool]) -> None:
        self._effects = effects
        self._is_attended = is_attended
        self._agents: dict[_Agent, _Waiting] = {}
        #: Agents counted since the last tick.
        self._counted: set[_Agent] = set()
        #: Deliveries whose expiry is being committed.
        self._expiring: set[int] = set()

    def decide(self, pending: PendingEntry, tenant: Tenant, choice: WithoutWorker.ValueType) -> None:
        """Set `deliver` and `expire_after_ms` of a user's message; `choice` is its own, or unset."""
        agent = pending.topic[:2]
        rules = tenant.delivery_rules(agent[1])
        waiting = self._agents.get(agent) or self._of_agent(agent)
        choice = choice or rules.without_worker
        if choice == WITHOUT_WORKER_SKIP and not self._is_attended(*agent):
            waiting.skipped += 1
        elif waiting.counted + waiting.added >= rules.max_waiting and not self._has_room(
            agent, waiting, rules.max_waiting
        ):
            waiting.overflowed += 1
        else:
            waiting.added += 1
            pending.deliver = True
            pending.expire_after_ms = 0 if choice == WITHOUT_WORKER_KEEP else rules.expire_after_ms

    def tick(self) -> None:
        """Let agents whose bound is reached be counted again."""
        self._counted.clear()

    def expire(self, deliveries: Sequence[ExpiredDelivery]) -> None:
        """Remove expired deliveries, which no worker holds, from the log."""
        new = [one for one in deliveries if one.delivery_id not in self._expiring]
        if not new:
            return
        self._expiring.update(one.delivery_id for one in new)
        transaction = Transaction(settled=[one.delivery_id for one in new])
        self._effects.commit_queue.add_write(AtomicWrite(transaction, ExpiryCommit(self, new)))

    def expiry_ended(self, deliveries: Sequence[ExpiredDelivery], *, is_committed: bool) -> None:
        """An expiry is committed, or was not: the log then has the deliveries still, expired as they are."""
        for one in deliveries:
            self._expiring.discard(one.delivery_id)
            if is_committed:
                self._of_agent((one.tenant, one.agent)).expired += 1

    def tenant_erased(self, tenant: str) -> None:
        """A tenant was deleted: forget its agents."""
        for agent in [each for each in self._agents if each[0] == tenant]:
            del self._agents[agent]

    def undelivered(self, tenant: str, agent: str) -> tuple[int, int, int]:
        """Return the deliveries of an agent that expired, were skipped and overflowed, since the start."""
        waiting = self._agents.get((tenant, agent))
        return (waiting.expired, waiting.skipped, waiting.overflowed) if waiting else (0, 0, 0)

    def agents_of(self, tenant: str) -> list[str]:
        """Return the agents of a tenant that messages were sent to since the start."""
        return [agent for of, agent in self._agents if of == tenant]

    def _of_agent(self, agent: _Agent) -> _Waiting:
        waiting = self._agents.get(agent)
        if waiting is None:
            if len(self._agents) >= MAX_AGENTS:
                del self._agents[next(iter(self._agents))]
            waiting = self._agents[agent] = _Waiting()
            # Deliveries may wait that an earlier process stored.
            self._count(agent, waiting)
        return waiting

    def _has_room(self, agent: _Agent, waiting: _Waiting, bound: int) -> bool:
        """Return whether an agent has room whose estimate has reached its bound, and count it again."""
        is_full = waiting.counted >= bound
        if not waiting.is_counting and not (is_full and agent in self._counted):
            self._count(agent, waiting)
        # Until it is counted, what was added may have been settled.
        return not is_full

    def _count(self, agent: _Agent, waiting: _Waiting) -> None:
        self._counted.add(agent)
        waiting.is_counting = True
        before, waiting.added = waiting.added, 0
        done = partial(self._count_done, waiting)
        failed = partial(self._count_failed, waiting, before)
        self._effects.reads.append(CountWaiting(*agent, done, failed))

    def _count_done(self, waiting: _Waiting, count: int) -> None:
        waiting.is_counting = False
        waiting.counted = count

    def _count_failed(self, waiting: _Waiting, before: int) -> None:
        waiting.is_counting = False
        waiting.added += before


class ExpiryCommit:
    """Listener of the removal of expired deliveries."""

    __slots__ = ("_deliveries", "_policy")

    def __init__(self, policy: DeliveryPolicy, deliveries: Sequence[ExpiredDelivery]) -> None:
        self._policy = policy
        self._deliveries = deliveries

    def done(self) -> None:
        """The deliveries are no longer in the log."""
        self._policy.expiry_ended(self._deliveries, is_committed=True)

    def failed(self, reason: object) -> None:
        """The deliveries are still in the log."""
        self._policy.expiry_ended(self._deliveries, is_committed=False)
