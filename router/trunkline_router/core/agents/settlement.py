"""Settlement of deliveries: ack, reject, retry and dead letter."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from trunkline.v1 import catalogue
from trunkline.v1.agent_service_pb2 import Reply, Settlement, SettlementResult
from trunkline.v1.catalogue import Refused
from trunkline.v1.message_pb2 import ROLE_AGENT, Message
from trunkline_runtime.refusals import to_error

from trunkline_router.core.agents.agent_queues import AgentQueues
from trunkline_router.core.agents.reply_statuses import ReplyStatuses
from trunkline_router.core.agents.retry_policy import RetryPolicy, backoff_s
from trunkline_router.core.agents.settlement_commits import AttemptCommit, GivenUpCommit, SettlementCommit
from trunkline_router.core.agents.worker import AttachedWorker, LeasedDelivery
from trunkline_router.core.commits.commit_queue import AtomicWrite
from trunkline_router.core.commits.effects import Effects
from trunkline_router.core.directory.directory import Directory
from trunkline_router.core.validation.validator import check
from trunkline_router.core.values.failures import error_for_readers
from trunkline_router.core.values.log_records import Attempts, DeadLettered, PendingEntry, Transaction
from trunkline_router.core.values.message_states import COMPLETE, FAILED
from trunkline_router.core.values.topics import TopicKey, address_of

#: Approximate size of a SettlementResult in a batch.
RESULT_BYTES = 128


class OpenReplies(Protocol):
    """Streamed replies that are open; implemented by the open messages."""

    def has_replies(self, topic: TopicKey, message_id: str) -> bool:
        """Return whether a reply to a message is open."""

    def fail_replies(self, topic: TopicKey, message_id: str) -> None:
        """End the replies to a message: no further attempt to answer it will be made."""


class Settlements:
    """Settles deliveries as workers ask and fails those whose workers are gone.

    A worker gets the result once the log has committed the settlement. The conversation of a delivery is
    notified of failed attempts, and of the last one by a reply that is FAILED.
    """

    def __init__(
        self,
        directory: Directory,
        queues: AgentQueues,
        statuses: ReplyStatuses,
        open_replies: OpenReplies,
        effects: Effects,
        *,
        max_attempts: int,
        now_ms: Callable[[], int],
        random: Callable[[], float],
    ) -> None:
        """`max_attempts` applies to agents that set none."""
        self._directory = directory
        self._queues = queues
        self._statuses = statuses
        self._open_replies = open_replies
        self._effects = effects
        self._max_attempts = max_attempts
        self._now_ms = now_ms
        self._random = random

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
            leased.is_settling = True
            reason = settlement.reject.reason or "the worker rejected it"
            # A streamed reply of this worker has failed, too, or answers the message.
            listener = GivenUpCommit(leased, self.rejected, self.not_settled)
            self._give_up(leased, reason, listener, is_reported=leased.is_answered)

    def _acknowledge(self, leased: LeasedDelivery, settlement: Settlement) -> None:
        for index, reply in enumerate(settlement.replies):
            if not reply.parts and not reply.HasField("error"):
                problem = "must be set unless error is"
                raise catalogue.INVALID_ARGUMENT.refused(field=f"replies[{index}].parts", problem=problem)
        leased.is_settling = True
        listener = SettlementCommit(leased, self.settled, self.not_settled)
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
        after_s = settlement.retry.after_ms / 1000 or backoff_s(leased.attempt, self._random)
        self.fail(leased, reason, now, after_s)
        # Not after the commit: whether or not it succeeds, another attempt or a dead letter follows.
        self.send_result(leased.worker, leased.id)

    # Outcomes of commits

    def settled(self, leased: LeasedDelivery, result: SettlementResult) -> None:
        """The settlement is committed."""
        self._complete(leased)
        is_silent = not result.replies and not leased.is_answered and not leased.is_cancelled
        # The withdrawal has reported the end of a withdrawn delivery.
        if (leased.attempt > 1 and not leased.is_withdrawn) or is_silent:
            self._statuses.ended(
                leased.delivery.topic, leased.message_id, leased.attempt - 1, leased.worker.blocked_by
            )
        self._send(leased.worker, result)

    def given_up(self, leased: LeasedDelivery) -> None:
        """The delivery is a dead letter: that is committed, with the reply that reports it."""
        topic = leased.delivery.topic
        self._open_replies.fail_replies(topic, leased.message_id)
        self._statuses.ended(topic, leased.message_id, leased.attempt, leased.worker.blocked_by)

    def rejected(self, leased: LeasedDelivery) -> None:
        """The rejection is committed: the delivery is a dead letter."""
        self._complete(leased)
        self.given_up(leased)
        self.send_result(leased.worker, leased.id)

    def not_settled(self, leased: LeasedDelivery, reason: Refused) -> None:
        """The settlement was not committed: the worker still holds the delivery."""
        leased.is_settling = False
        if not leased.worker.is_attached:
            # The time is not known here: take the latest start of the lease, at most a lease ago.
            self.fail(leased, "the worker's stream broke", leased.lease_ends - self._queues.lease_s)
        self.send_result(leased.worker, leased.id, reason)

    def not_given_up(self, leased: LeasedDelivery, reason: Refused) -> None:
        """The dead letter was not committed: the delivery is still in the log."""
        self._queues.requeue(leased.delivery)

    # Failed deliveries

    def lost(self, leased: LeasedDelivery, reason: str, now: float) -> None:
        """The worker is gone, or its lease has ended: deliver it again, the first time at once."""
        after_s = backoff_s(leased.attempt, self._random) if leased.attempt > 1 else 0.0
        self.fail(leased, reason, now, after_s)

    def fail(self, leased: LeasedDelivery, reason: str, now: float, after_s: float = 0.0) -> None:
        """Deliver it again after a delay, or dead-letter it after the last attempt."""
        if leased.is_erased or leased.is_cancelled:
            self._complete(leased)
            return
        queue = self._queues.holding(leased)
        failed = queue.failed.get(leased.id)
        since = now if failed is None or failed.since is None else failed.since
        if self._retry_policy(leased.delivery.topic).is_used_up(leased.attempt, now - since):
            reason = f"after {leased.attempt} attempts; the last: {reason}"
            self._complete(leased)
            self._give_up(leased, reason, GivenUpCommit(leased, self.given_up, self.not_given_up))
            return
        queue.retry(leased, now + after_s if after_s else None)
        self._queues.mark_ready(queue)
        next_attempt_ms = self._now_ms() + round(after_s * 1000) if after_s else 0
        self._statuses.retrying(queue.failed.record(leased, now, next_attempt_ms), leased.worker.blocked_by)
        transaction = Transaction(attempts=[Attempts(leased.id, leased.attempt)])
        # If the log fails to commit it, there is one more attempt at most.
        self._effects.commit_queue.add_write(AtomicWrite(transaction, AttemptCommit()))

    def _retry_policy(self, topic: TopicKey) -> RetryPolicy:
        return RetryPolicy.of(self._directory.agent_settings(*topic[:2]), self._max_attempts)

    def _give_up(
        self,
        leased: LeasedDelivery,
        reason: str,
        listener: GivenUpCommit,
        *,
        is_reported: bool = False,
    ) -> None:
        """Make a dead letter, and report that to the conversation unless a streamed reply does."""
        topic = leased.delivery.topic
        entries = []
        if not is_reported and not self._open_replies.has_replies(topic, leased.message_id):
            message = message_of(Reply(error=error_for_readers()), topic, leased.message_id)
            entries.append(PendingEntry(topic, message, listener=listener))
        dead = DeadLettered(leased.id, leased.attempt, reason)
        transaction = Transaction(entries=entries, dead_lettered=[dead])
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


def message_of(reply: Reply, topic: TopicKey, reply_to: str) -> Message:
    """Return the message that a worker's reply becomes."""
    message = Message(address=address_of(topic), parts=reply.parts, reply_to=reply_to, state=COMPLETE)
    message.author.role = ROLE_AGENT
    message.author.name = reply.name or topic[1]
    if reply.attributes:
        message.attributes.update(reply.attributes)
    if reply.HasField("error"):
        message.state = FAILED
        message.error.CopyFrom(error_for_readers(reply.error))
    return message
