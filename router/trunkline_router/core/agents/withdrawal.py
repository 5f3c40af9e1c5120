"""Withdrawal of deliveries whose messages no longer need an answer."""

from __future__ import annotations

from collections.abc import Callable

from trunkline.v1.catalogue import Refused
from trunkline.v1.message_pb2 import Author, Message

from trunkline_router.core.agents.agent_queues import AgentQueues
from trunkline_router.core.agents.reply_statuses import ReplyStatuses
from trunkline_router.core.agents.settlement import RESULT_BYTES
from trunkline_router.core.agents.worker import LeasedDelivery
from trunkline_router.core.commits.commit_queue import AtomicWrite
from trunkline_router.core.commits.effects import Effects
from trunkline_router.core.values.log_records import Transaction, Withdrawal
from trunkline_router.core.values.stored_records import StoredDelivery
from trunkline_router.core.values.topics import TopicKey


class Withdrawals:
    """Removes deliveries from the queues and the log, and cancels those that workers hold.

    The conversation is notified that no attempt follows if earlier ones had failed.
    `withdrawn` is called with topic, message id and author once a withdrawal is committed. It must cancel the
    replies that are open: they may have been on their way to the log, from any worker. The log marks replies
    that are opened later.
    """

    def __init__(
        self,
        queues: AgentQueues,
        statuses: ReplyStatuses,
        effects: Effects,
        withdrawn: Callable[[TopicKey, str, Author], None],
    ) -> None:
        self._queues = queues
        self._statuses = statuses
        self._effects = effects
        self._withdrawn = withdrawn

    def withdraw(
        self,
        topic: TopicKey,
        message: Message,
        author: Author,
        done: Callable[[bool], None] | None = None,
        failed: Callable[[Refused], None] = lambda reason: None,
    ) -> None:
        """Withdraw the delivery of a message; a worker that holds it receives `cancelled`.

        `author` no longer wants an answer. Calls `done` once the log has removed it, with True if an answer
        was still due, or `failed` if the log could not.
        """
        self._queues.withdrawing.setdefault(message.id)
        found = None
        queue = self._queues.get(*topic[:2])
        if queue is not None:
            found = queue.withdraw(topic, message.id)
            self._queues.mark_ready(queue)
        if isinstance(found, LeasedDelivery) and found.worker.is_attached:
            found.worker.batch_for(RESULT_BYTES).cancelled.append(found.id)
            self._effects.writable_peers.add(found.worker)
        withdrawal = Withdrawal(topic, message.position.seq)
        listener = WithdrawalCommit(self, found, withdrawal, message.id, author, done, failed)
        self._effects.commit_queue.add_write(AtomicWrite(Transaction(withdrawn=[withdrawal]), listener))

    def conclude(self, topic: TopicKey, message_id: str) -> StoredDelivery | None:
        """End a withdrawal, committed or not. Returns the delivery if it was loaded meanwhile."""
        # The agent's first worker may have attached meanwhile.
        queue = self._queues.get(*topic[:2])
        if queue is not None:
            queue.withdrawal_committed()
        return self._queues.withdrawing.pop(message_id, None)

    def report_end(self, topic: TopicKey, message_id: str, attempts: int, *, is_answered: bool) -> None:
        """Notify the conversation that no attempt follows this many failed ones.

        With none, an answered message needs no notice: its reply reports the end.
        """
        if attempts or not is_answered:
            self._statuses.ended(topic, message_id, attempts, set())

    def report_end_of_leased(self, leased: LeasedDelivery) -> None:
        """Report the end of a delivery that a worker holds: that worker may be lost and never settle it."""
        queue = self._queues.get(*leased.delivery.topic[:2])
        if queue is not None:
            queue.failed.forget(leased.id)
        attempts = leased.attempt - 1
        self.report_end(leased.delivery.topic, leased.message_id, attempts, is_answered=leased.is_answered)

    def cancel_replies(self, topic: TopicKey, message_id: str, author: Author) -> None:
        """Cancel the replies that are open once the withdrawal is committed."""
        self._withdrawn(topic, message_id, author)

    def restore(self, found: LeasedDelivery | StoredDelivery | None) -> None:
        """Undo a withdrawal that was not committed: the delivery is still in the log.

        Unless an earlier withdrawal of the same message was committed.
        """
        if isinstance(found, LeasedDelivery):
            if found.is_withdrawn:
                return
            found.is_cancelled = False
            queue = self._queues.get(*found.delivery.topic[:2])
            is_held = queue is not None and found.id in queue.held
            if not (is_held or found.is_settling or found.is_erased):
                self._queues.requeue(found.delivery)
        elif found is not None:
            self._queues.requeue(found)


class WithdrawalCommit:
    """Listener of a withdrawal."""

    __slots__ = (
        "_author",
        "_done",
        "_failed",
        "_found",
        "_is_answered",
        "_message_id",
        "_stops",
        "_withdrawal",
        "_withdrawals",
    )

    def __init__(
        self,
        withdrawals: Withdrawals,
        found: LeasedDelivery | StoredDelivery | None,
        withdrawal: Withdrawal,
        message_id: str,
        author: Author,
        done: Callable[[bool], None] | None,
        failed: Callable[[Refused], None],
    ) -> None:
        self._withdrawals = withdrawals
        self._found = found
        #: The worker that holds the delivery stops; a settlement that is being committed goes first.
        self._stops = isinstance(found, LeasedDelivery) and not found.is_settling
        self._is_answered = isinstance(found, LeasedDelivery) and found.is_answered
        self._withdrawal = withdrawal
        self._message_id = message_id
        self._author = author
        self._done = done
        self._failed = failed

    def done(self) -> None:
        """The delivery is no longer in the log."""
        topic = self._withdrawal.topic
        self._withdrawals.conclude(topic, self._message_id)
        self._withdrawals.cancel_replies(topic, self._message_id, self._author)
        if isinstance(self._found, LeasedDelivery):
            if self._stops and not self._found.is_withdrawn:
                self._withdrawals.report_end_of_leased(self._found)
            self._found.is_cancelled = self._found.is_withdrawn = True
        elif self._found is not None:
            attempts = self._found.attempts
            self._withdrawals.report_end(topic, self._message_id, attempts, is_answered=False)
        elif self._withdrawal.found and self._done is not None:
            # In the log only, for lack of a worker. A recall notifies the conversation by its change.
            self._withdrawals.report_end(topic, self._message_id, 0, is_answered=False)
        if self._done is not None:
            self._done((self._withdrawal.found or self._stops) and not self._is_answered)

    def failed(self, reason: Refused) -> None:
        """The delivery, if there is one, is still in the log."""
        loaded = self._withdrawals.conclude(self._withdrawal.topic, self._message_id)
        self._withdrawals.restore(self._found or loaded)
        self._failed(reason)
