"""Settlement of deliveries: ack, reject, retry and dead letter."""

from __future__ import annotations

from collections.abc import Callable

from trunkline.v1 import catalogue
from trunkline.v1.agent_service_pb2 import Reply, Settlement, SettlementResult
from trunkline.v1.catalogue import Refused
from trunkline.v1.message_pb2 import ROLE_AGENT, Message
from trunkline_runtime.refusals import to_error

from trunkline_router.core.agents.agent_queues import AgentQueues
from trunkline_router.core.agents.worker import AttachedWorker, LeasedDelivery
from trunkline_router.core.commits.commit_queue import AtomicWrite
from trunkline_router.core.commits.effects import Effects
from trunkline_router.core.directory.connections import ConnectedClient, Link
from trunkline_router.core.validation.validator import check
from trunkline_router.core.values.log_records import Attempts, DeadLettered, PendingEntry, Transaction
from trunkline_router.core.values.message_states import COMPLETE
from trunkline_router.core.values.stored_records import StoredDelivery
from trunkline_router.core.values.topics import TopicKey, address_of

#: Approximate size of a SettlementResult in a batch.
RESULT_BYTES = 128


class Settlements:
    """Settles deliveries as workers ask and fails those whose workers are gone.

    A worker gets the result once the log has committed the settlement. `dead_lettered` is called with
    topic and message id when no further attempt to answer a message will be made.
    """

    def __init__(
        self,
        queues: AgentQueues,
        effects: Effects,
        *,
        max_attempts: int,
        dead_lettered: Callable[[TopicKey, str], None],
    ) -> None:
        self._queues = queues
        self._effects = effects
        self._max_attempts = max_attempts
        self._dead_lettered = dead_lettered

    def settle(self, worker: AttachedWorker, settlement: Settlement, now: float) -> None:
        """Settle a delivery as the worker asks; the result goes to the worker, rejections included."""
        try:
            self._settle(worker, settlement, now)
        except Refused as reason:
            self.send_result(worker, settlement.delivery_id, reason)

    def _settle(self, worker: AttachedWorker, settlement: Settlement, now: float) -> None:
        leased = worker.held.get(settlement.delivery_id)
        if leased is None or leased.is_settling or leased.is_erased:
            if leased is not None and not leased.is_settling:
                # Messages sent since the log was erased have waited for this.
                self._complete(leased)
            raise catalogue.DELIVERY_NOT_HELD.refused(delivery_id=settlement.delivery_id)
        check(settlement)
        outcome = settlement.WhichOneof("outcome")
        if outcome is None or leased.is_cancelled:
            self._acknowledge(leased, settlement)
            return
        if settlement.replies:
            problem = f"must be empty if {outcome} is set"
            raise catalogue.INVALID_ARGUMENT.refused(field="replies", problem=problem)
        if outcome == "retry":
            self._retry(leased, settlement, now)
        else:
            self._reject(leased, settlement.reject.reason or "the worker rejected it")

    def _acknowledge(self, leased: LeasedDelivery, settlement: Settlement) -> None:
        leased.is_settling = True
        listener = SettlementCommit(self, leased)
        topic = leased.delivery.topic
        replies = () if leased.is_cancelled else settlement.replies
        entries = [
            PendingEntry(topic, message_of(reply, topic, leased.message_id), listener=listener)
            for reply in replies
        ]
        transaction = Transaction(entries=entries, settled=[leased.id])
        self._effects.commit_queue.add_write(AtomicWrite(transaction, listener))

    def _retry(self, leased: LeasedDelivery, settlement: Settlement, now: float) -> None:
        reason = settlement.retry.reason or "the worker asked for another attempt"
        self.fail(leased, reason, now + settlement.retry.after_ms / 1000)
        # Not after the commit: whether or not it succeeds, another attempt or a dead letter follows.
        self.send_result(leased.worker, leased.id)

    def _reject(self, leased: LeasedDelivery, reason: str) -> None:
        leased.is_settling = True
        transaction = Transaction(dead_lettered=[DeadLettered(leased.id, leased.attempt, reason)])
        self._effects.commit_queue.add_write(AtomicWrite(transaction, RejectionCommit(self, leased)))

    # Outcomes of commits

    def settled(self, leased: LeasedDelivery, result: SettlementResult) -> None:
        """The settlement is committed."""
        self._complete(leased)
        self._send(leased.worker, result)

    def rejected(self, leased: LeasedDelivery, result: SettlementResult) -> None:
        """The rejection is committed: the delivery is a dead letter."""
        self._dead_lettered(leased.delivery.topic, leased.message_id)
        self.settled(leased, result)

    def not_settled(self, leased: LeasedDelivery, reason: Refused) -> None:
        """The settlement was not committed: the worker still holds the delivery."""
        leased.is_settling = False
        if not leased.worker.is_attached:
            self.fail(leased, "the worker's stream broke")
        self.send_result(leased.worker, leased.id, reason)

    def requeue(self, delivery: StoredDelivery) -> None:
        """The dead letter was not committed: the delivery is still in the log."""
        self._queues.requeue(delivery)

    # Failed deliveries

    def fail(self, leased: LeasedDelivery, reason: str, not_before: float | None = None) -> None:
        """Deliver it again, from `not_before` on if given, or dead-letter it after the last attempt."""
        if leased.is_erased or leased.is_cancelled:
            self._complete(leased)
            return
        if leased.attempt >= self._max_attempts:
            self._dead_letter(leased, f"after {leased.attempt} attempts; the last: {reason}")
            return
        queue = self._queues.holding(leased)
        queue.retry(leased, not_before)
        self._queues.mark_ready(queue)
        transaction = Transaction(attempts=[Attempts(leased.id, leased.attempt)])
        # If the log fails to commit it, there is one more attempt at most.
        self._effects.commit_queue.add_write(AtomicWrite(transaction, AttemptCommit()))

    def _dead_letter(self, leased: LeasedDelivery, reason: str) -> None:
        self._complete(leased)
        self._dead_lettered(leased.delivery.topic, leased.message_id)
        transaction = Transaction(dead_lettered=[DeadLettered(leased.id, leased.attempt, reason)])
        listener = DeadLetterCommit(self, leased.delivery)
        self._effects.commit_queue.add_write(AtomicWrite(transaction, listener))

    def _complete(self, leased: LeasedDelivery) -> None:
        queue = self._queues.holding(leased)
        queue.complete(leased)
        self._queues.mark_ready(queue)

    # Results

    def send_result(self, worker: AttachedWorker, delivery_id: int, reason: Refused | None = None) -> None:
        """Send the worker OK, or the reason why the delivery was not settled."""
        result = SettlementResult(delivery_id=delivery_id)
        if reason is not None:
            result.error.CopyFrom(to_error(reason))
        self._send(worker, result)

    def _send(self, worker: AttachedWorker, result: SettlementResult) -> None:
        if worker.is_attached:
            worker.batch_for(RESULT_BYTES).results.append(result)
            self._effects.writable_peers.add(worker)
            self._queues.mark_all_of(worker)


class SettlementCommit:
    """Listener of an acknowledgement with its replies; gathers the result for the worker."""

    __slots__ = ("_leased", "_result", "_settlements")

    connection: ConnectedClient | None = None

    def __init__(self, settlements: Settlements, leased: LeasedDelivery) -> None:
        self._settlements = settlements
        self._leased = leased
        self._result = SettlementResult(delivery_id=leased.id)

    @property
    def blocked_by(self) -> set[Link]:
        """Outboxes that its replies have filled; the worker gets no deliveries meanwhile."""
        return self._leased.worker.blocked_by

    def committed(self, pending: PendingEntry) -> None:
        """A reply is committed."""
        self._result.replies.add(message_id=pending.message.id, position=pending.message.position)

    def refused(self, pending: PendingEntry, reason: Refused) -> None:
        """A reply was rejected; `failed` reports the whole settlement."""

    def done(self) -> None:
        """The settlement is committed."""
        self._settlements.settled(self._leased, self._result)

    def failed(self, reason: Refused) -> None:
        """Nothing of the settlement was committed."""
        self._settlements.not_settled(self._leased, reason)


class RejectionCommit:
    """Listener of a rejection, by which a delivery becomes a dead letter."""

    __slots__ = ("_leased", "_settlements")

    def __init__(self, settlements: Settlements, leased: LeasedDelivery) -> None:
        self._settlements = settlements
        self._leased = leased

    def done(self) -> None:
        """The rejection is committed."""
        self._settlements.rejected(self._leased, SettlementResult(delivery_id=self._leased.id))

    def failed(self, reason: Refused) -> None:
        """The rejection was not committed."""
        self._settlements.not_settled(self._leased, reason)


class AttemptCommit:
    """Listener of a failed attempt, whose commit nothing depends on."""

    __slots__ = ()

    def done(self) -> None:
        """Ignore the commit."""

    def failed(self, reason: Refused) -> None:
        """Ignore the failure."""


class DeadLetterCommit:
    """Listener of a dead letter made by the router after the last attempt."""

    __slots__ = ("_delivery", "_settlements")

    def __init__(self, settlements: Settlements, delivery: StoredDelivery) -> None:
        self._settlements = settlements
        self._delivery = delivery

    def done(self) -> None:
        """The dead letter is committed."""

    def failed(self, reason: Refused) -> None:
        """The dead letter was not committed."""
        self._settlements.requeue(self._delivery)


def message_of(reply: Reply, topic: TopicKey, reply_to: str) -> Message:
    """Return the message that a worker's reply becomes."""
    message = Message(address=address_of(topic), parts=reply.parts, reply_to=reply_to, state=COMPLETE)
    message.author.role = ROLE_AGENT
    message.author.name = reply.name or topic[1]
    if reply.attributes:
        message.attributes.update(reply.attributes)
    return message
