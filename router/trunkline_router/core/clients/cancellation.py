"""Cancellation of replies by clients, before the replies exist or while they are open."""

from __future__ import annotations

from typing import Protocol

from trunkline.v1 import catalogue
from trunkline.v1.catalogue import Refused
from trunkline.v1.frame_pb2 import CancelFrame, CancelledFrame, CancelledReply
from trunkline.v1.message_pb2 import ROLE_USER, Author, Message, MessageState

from trunkline_router.core.agents.withdrawal import Withdrawals
from trunkline_router.core.clients.conversations import subscribed_topic
from trunkline_router.core.clients.participants import Participant
from trunkline_router.core.clients.received_frame import ReceivedFrame
from trunkline_router.core.commits.effects import Effects
from trunkline_router.core.commits.idempotency import idempotency_key
from trunkline_router.core.directory.client_outbox import ClientOutbox
from trunkline_router.core.directory.connections import ConnectedClient, Link
from trunkline_router.core.directory.directory import Directory
from trunkline_router.core.replies.commit_listeners import EndListener
from trunkline_router.core.replies.open_messages import OpenMessages
from trunkline_router.core.values.log_records import AppendResult, PendingEntry
from trunkline_router.core.values.message_states import OPEN
from trunkline_router.core.values.topics import GROUP, PERSON, Position, TopicKey, topic_of


class Cancellations:
    """Finds the replies that a cancel names, ends them and answers once that is committed."""

    def __init__(
        self,
        directory: Directory,
        open_messages: OpenMessages,
        withdrawals: Withdrawals,
        outbox: ClientOutbox,
        effects: Effects,
    ) -> None:
        self._directory = directory
        self._open_messages = open_messages
        self._withdrawals = withdrawals
        self._outbox = outbox
        self._effects = effects
        #: Number of erasures so far: a message read before the last one may be gone.
        self._erasures = 0

    def handle_cancel(self, received: ReceivedFrame[CancelFrame]) -> None:
        """Cancel one reply, or all replies to a message of the client's user."""
        connection, frame, _, _ = received
        target = frame.WhichOneof("target")
        if target is None:
            problem = "one of message_id and client_id must be set"
            raise catalogue.INVALID_ARGUMENT.refused(field="target", problem=problem)
        author = Author(role=ROLE_USER, user=connection.user)
        cancel = PendingCancel(author, CancelAnswer(self._outbox, connection, frame.id))
        if target == "message_id":
            self.cancel_reply(connection, frame.message_id, cancel.add(frame.message_id))
        else:
            topic = subscribed_topic(connection, frame).key
            key = idempotency_key(connection.tenant, "client", topic, connection.user, frame.client_id)
            self.cancel_replies_to(topic, key, frame.client_id, cancel)

    def cancel_reply(self, client: Participant, message_id: str, listener: EndListener) -> None:
        """Cancel one reply; the listener receives how it ended, or a refusal.

        Raises Refused MESSAGE_NOT_FOUND, or notifies the listener of it, if the reply is in no conversation
        that the client listens to.
        """
        message = self._open_messages.get(message_id)
        if message is not None:
            _check_listening(client, message.topic, message_id)
            self._open_messages.cancel(message, listener, Author(role=ROLE_USER, user=client.user))
            return

        def retry() -> None:
            try:
                self.cancel_reply(client, message_id, listener)
            except Refused as reason:
                listener.not_ended(reason)

        def done(ended: Message | None) -> None:
            if ended is None:
                listener.not_ended(catalogue.MESSAGE_NOT_FOUND.refused(message_id=message_id))
                return
            if ended.state == OPEN:
                # It was opened, or ended, while the log was read.
                self._effects.commit_queue.after_commit(retry)
                return
            try:
                _check_listening(client, topic_of(ended.address), message_id)
            except Refused as reason:
                listener.not_ended(reason)
                return
            listener.ended(ended.state, None)

        self._open_messages.read_message(client.tenant.name, message_id, done, listener.not_ended)

    def cancel_replies_to(self, topic: TopicKey, key: bytes, client_id: str, cancel: PendingCancel) -> None:
        """Cancel all replies to the message that was published to a conversation with an idempotency key.

        The message may still be on its way to the log, so the lookup of the key is queued behind it.
        """
        listener = CancelLookup(self, topic, client_id, cancel)
        pending = PendingEntry(topic, Message(), key=key, repeat_only=True, listener=listener)
        self._effects.commit_queue.add(pending, 0)

    def found(self, topic: TopicKey, message: Message, cancel: PendingCancel) -> None:
        """The message is known: withdraw its delivery and end its replies, unless its log was erased."""
        known = self._directory.topics.get(topic)
        if known is None or known.position is None:
            self._find_in_log(topic, message, cancel)
        elif known.position.epoch == message.position.epoch:
            self._withdraw(topic, message, cancel)
        else:
            cancel.prevented(False)

    def _find_in_log(self, topic: TopicKey, message: Message, cancel: PendingCancel) -> None:
        """Nobody listens to the topic, so only the log knows whether the message still exists."""
        erasures = self._erasures

        def done(current: Message | None) -> None:
            if erasures != self._erasures:
                self._find_in_log(topic, message, cancel)
            elif current is None:
                cancel.prevented(False)
            else:
                self._withdraw(topic, message, cancel)

        self._open_messages.read_message(topic[0], message.id, done, cancel.not_ended)

    def log_erased(self) -> None:
        """A log, or part of one, was erased."""
        self._erasures += 1

    def _withdraw(self, topic: TopicKey, message: Message, cancel: PendingCancel) -> None:
        replies = list(self._open_messages.replies_to(topic, message.id))
        if not replies:
            self._withdrawals.withdraw(topic, message, cancel.author, cancel.prevented, cancel.not_ended)
            return
        self._withdrawals.withdraw(topic, message, cancel.author)
        # All are added before the first ends: the answer waits for all.
        listeners = [(reply, cancel.add(reply.id)) for reply in replies]
        for reply, listener in listeners:
            self._open_messages.cancel(reply, listener, cancel.author)


def _check_listening(client: Participant, topic: TopicKey, message_id: str) -> None:
    """Only listeners of a conversation may cancel its replies."""
    if topic[3] not in (PERSON, GROUP) or not client.listens_to(topic):
        raise catalogue.MESSAGE_NOT_FOUND.refused(message_id=message_id)


class CancelListener(Protocol):
    """The source of a cancel, which receives its outcome."""

    @property
    def blocked_by(self) -> set[Link]:
        """See CommitListener."""

    def cancelled(self, outcome: CancelledFrame) -> None:
        """All replies that the cancel targeted have ended; `outcome` has no id."""

    def refused(self, reason: Refused) -> None:
        """A reply could not be ended, or the message was not found."""


class CancelAnswer:
    """Answers a `cancel` frame with `cancelled` or `error`."""

    __slots__ = ("_connection", "_frame_id", "_outbox")

    def __init__(self, outbox: ClientOutbox, connection: ConnectedClient, frame_id: str) -> None:
        self._outbox = outbox
        self._connection = connection
        self._frame_id = frame_id

    @property
    def blocked_by(self) -> set[Link]:
        """Shared by all clients of an edge."""
        return self._connection.link.blocked_by

    def cancelled(self, outcome: CancelledFrame) -> None:
        """See CancelListener."""
        outcome.id = self._frame_id
        self._outbox.send(self._connection, outcome.ByteSize()).cancelled.CopyFrom(outcome)

    def refused(self, reason: Refused) -> None:
        """See CancelListener."""
        self._outbox.refuse(self._connection, self._frame_id, reason)


class PendingCancel:
    """One cancel that waits until all its replies have ended, then notifies its listener once."""

    def __init__(self, author: Author, listener: CancelListener) -> None:
        self.author = author
        self.listener = listener
        self._outcome = CancelledFrame()
        self._waiting = 0
        self._is_answered = False

    def add(self, message_id: str) -> ReplyCancel:
        """Add a reply to wait for."""
        self._waiting += 1
        return ReplyCancel(self, message_id)

    def ended(self, message_id: str, state: MessageState.ValueType) -> None:
        """A reply has ended."""
        self._outcome.replies.append(CancelledReply(message_id=message_id, state=state))
        self._waiting -= 1
        if not self._waiting:
            self._answer()

    def prevented(self, found: bool) -> None:
        """No reply was open; `found` is whether one would have followed."""
        self._outcome.prevented = found
        self._answer()

    def not_ended(self, reason: Refused) -> None:
        """A reply could not be ended, or the message was not found."""
        if not self._is_answered:
            self._is_answered = True
            self.listener.refused(reason)

    def _answer(self) -> None:
        if not self._is_answered:
            self._is_answered = True
            self.listener.cancelled(self._outcome)


class ReplyCancel:
    """Listener of the end of one reply."""

    __slots__ = ("_cancel", "_message_id")

    def __init__(self, cancel: PendingCancel, message_id: str) -> None:
        self._cancel = cancel
        self._message_id = message_id

    def ended(self, state: MessageState.ValueType, position: Position | None) -> None:
        """The reply has ended, by this cancel or before."""
        self._cancel.ended(self._message_id, state)

    def not_ended(self, reason: Refused) -> None:
        """The reply could not be ended."""
        self._cancel.not_ended(reason)


class CancelLookup:
    """Listener of the lookup of a message by its idempotency key."""

    __slots__ = ("_cancel", "_cancellations", "_client_id", "_topic")

    connection: ConnectedClient | None = None

    def __init__(
        self, cancellations: Cancellations, topic: TopicKey, client_id: str, cancel: PendingCancel
    ) -> None:
        self._cancellations = cancellations
        self._topic = topic
        self._client_id = client_id
        self._cancel = cancel

    @property
    def blocked_by(self) -> set[Link]:
        """Those of the cancel's source."""
        return self._cancel.listener.blocked_by

    def committed(self, pending: PendingEntry) -> None:
        """The message exists."""
        self._cancellations.found(self._topic, pending.message, self._cancel)

    def refused(self, pending: PendingEntry, reason: Refused) -> None:
        """The message does not exist, or the log is unavailable."""
        if pending.result is AppendResult.NO_REPEAT:
            reason = catalogue.MESSAGE_NOT_FOUND.refused(message_id=self._client_id)
        self._cancel.not_ended(reason)
