"""What is told when a delivery's end, or its failure, is on disk."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from trunkline.v1.agent_service_pb2 import Reply, SettlementResult
from trunkline.v1.catalogue import Refused
from trunkline.v1.message_pb2 import ROLE_AGENT, Message

from trunkline_router.core.agents.agent_queue import AgentQueue, LeasedDelivery
from trunkline_router.core.directory.connections import ConnectedClient, Link
from trunkline_router.core.values.log_records import PendingEntry, StoredDelivery, Withdrawal
from trunkline_router.core.values.message_states import COMPLETE

if TYPE_CHECKING:
    from trunkline_router.core.agents.dispatcher import Dispatcher


class SettlementCommit:
    """Origin of a settlement's replies; collects what is told to the worker."""

    __slots__ = ("_agents", "_held", "result")

    connection: ConnectedClient | None = None

    def __init__(self, agents: Dispatcher, held: LeasedDelivery) -> None:
        self._agents = agents
        self._held = held
        self.result = SettlementResult(delivery_id=held.delivery.delivery_id)

    @property
    def blocked_by(self) -> set[Link]:
        """A worker whose replies fill outboxes is handed nothing more for now."""
        return self._held.worker.blocked_by

    def committed(self, pending: PendingEntry) -> None:
        """One of the replies is on disk."""
        self.result.replies.add(message_id=pending.message.id, position=pending.message.position)

    def refused(self, pending: PendingEntry, reason: Refused) -> None:
        """One of the replies is not; `failed` tells the worker of all."""

    def done(self) -> None:
        """All of the settlement is on disk."""
        self._agents.settled(self._held, self.result)

    def failed(self, reason: Refused) -> None:
        """None of it is."""
        self._agents.not_settled(self._held, reason)


class RejectionCommit(SettlementCommit):
    """Origin of a settlement by which a delivery becomes a dead letter."""

    __slots__ = ()

    def done(self) -> None:
        """It is one now."""
        self._agents.rejected(self._held, self.result)


class AttemptCommit:
    """Origin of what nobody waits for."""

    __slots__ = ()

    def done(self) -> None:
        """It is on disk."""

    def failed(self, reason: Refused) -> None:
        """It is not."""


class DeadLetterCommit:
    """Origin of a delivery that becomes a dead letter, for which nobody has asked."""

    __slots__ = ("_agents", "_delivery", "_queue")

    def __init__(self, agents: Dispatcher, queue: AgentQueue, delivery: StoredDelivery) -> None:
        self._agents = agents
        self._queue = queue
        self._delivery = delivery

    def done(self) -> None:
        """It is one now."""

    def failed(self, reason: Refused) -> None:
        """It is still a delivery."""
        self._agents.put_back(self._queue, self._delivery)


class WithdrawalCommit:
    """Origin of a delivery that is taken out without an answer."""

    def __init__(
        self,
        agents: Dispatcher,
        found: LeasedDelivery | StoredDelivery | None,
        withdrawal: Withdrawal,
        message_id: str,
        done: Callable[[bool], None],
        failed: Callable[[Refused], None],
    ) -> None:
        self._agents = agents
        self._found = found
        #: What a settlement under way says comes before this; else whoever is at it stops.
        self._stops = isinstance(found, LeasedDelivery) and not found.settling
        self._is_answered = isinstance(found, LeasedDelivery) and found.answered
        self._withdrawal = withdrawal
        self._message_id = message_id
        self._done = done
        self._failed = failed

    def done(self) -> None:
        """It is out of the log, if it was there."""
        self._agents.withdrawn(self._withdrawal.topic, self._message_id)
        self._done((self._withdrawal.found or self._stops) and not self._is_answered)

    def failed(self, reason: Refused) -> None:
        """It is still there."""
        meanwhile = self._agents.withdrawn(self._withdrawal.topic, self._message_id)
        self._agents.not_withdrawn(self._found or meanwhile)
        self._failed(reason)


def message_of(reply: Reply, said: Message, agent: str) -> Message:
    """The message that a reply becomes."""
    message = Message(address=said.address, parts=reply.parts, reply_to=said.id, state=COMPLETE)
    message.author.role = ROLE_AGENT
    message.author.name = reply.name or agent
    if reply.attributes:
        message.attributes.update(reply.attributes)
    return message
