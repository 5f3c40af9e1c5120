"""Cancellation of replies by clients, before the replies exist or while they are open."""

from __future__ import annotations

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
from trunkline_router.core.directory.connections import ConnectedClient, Link, Topic
from trunkline_router.core.replies.commit_listeners import EndListener
from trunkline_router.core.replies.open_messages import OpenMessages
from trunkline_router.core.replies.streamed_message import StreamedMessage
from trunkline_router.core.values.log_records import AppendResult, PendingEntry
from trunkline_router.core.values.message_states import OPEN
from trunkline_router.core.values.topics import GROUP, PERSON, Position, TopicKey, topic_of


class Cancellations:
    """Finds the replies that a cancel names, ends them and answers once that is committed."""

    def __init__(
        self,
        open_messages: OpenMessages,
        withdrawals: Withdrawals,
        outbox: ClientOutbox,
        effects: Effects,
    ) -> None:
        self._open_messages = open_messages
        self._withdrawals = withdrawals
        self._outbox = outbox
        self._effects = effects

    def handle_cancel(self, received: ReceivedFrame[CancelFrame]) -> None:
        """Cancel one reply, or all replies to a message of the client's user."""
        connection, frame, _ = received
        target = frame.WhichOneof("target")
        if target is None:
            problem = "one of message_id and client_id must be set"
            raise catalogue.INVALID_ARGUMENT.refused(field="target", problem=problem)
        if target == "message_id":
            cancel = PendingCancel(self._outbox, connection, frame.id)
            self.cancel_reply(connection, frame.message_id, cancel.add(frame.message_id))
        else:
            self._cancel_replies_to(connection, subscribed_topic(connection, frame), frame)

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

    def _cancel_replies_to(self, connection: ConnectedClient, topic: Topic, frame: CancelFrame) -> None:
        """Cancel all replies to a message of the client's user.

        The message may still be on its way to the log, so the lookup of its id is queued behind it.
        """
        key = idempotency_key(connection.tenant, "client", topic.key, connection.user, frame.client_id)
        listener = CancelLookup(self, connection, topic.key, frame)
        pending = PendingEntry(topic.key, Message(), key=key, repeat_only=True, listener=listener)
        self._effects.commit_queue.add(pending, 0)

    def found(self, connection: ConnectedClient, topic: TopicKey, frame_id: str, message: Message) -> None:
        """The message is known: withdraw its delivery, and end the replies to it."""
        cancel = PendingCancel(self._outbox, connection, frame_id)
        current = connection.subscription_to(topic)
        known = current.position if current is not None else None
        if known is not None and known.epoch != message.position.epoch:
            # Its log was erased.
            cancel.prevented(False)
            return
        replies = list(self._open_messages.replies_to(topic, message.id))
        author = Author(role=ROLE_USER, user=connection.user)

        if replies:
            self._withdrawals.withdraw(topic, message, author)
            self._stop(replies, cancel)
        else:
            self._withdrawals.withdraw(topic, message, author, cancel.prevented, cancel.not_ended)

    def refuse(self, connection: ConnectedClient, frame_id: str, reason: Refused) -> None:
        """Answer a cancel with `error`."""
        self._outbox.refuse(connection, frame_id, reason)

    def _stop(self, replies: list[StreamedMessage], cancel: PendingCancel) -> None:
        author = Author(role=ROLE_USER, user=cancel.connection.user)
        # All are added before the first ends: the answer waits for all.
        listeners = [(reply, cancel.add(reply.id)) for reply in replies]
        for reply, listener in listeners:
            self._open_messages.cancel(reply, listener, author)


def _check_listening(client: Participant, topic: TopicKey, message_id: str) -> None:
    """Only listeners of a conversation may cancel its replies."""
    if topic[3] not in (PERSON, GROUP) or not client.listens_to(topic):
        raise catalogue.MESSAGE_NOT_FOUND.refused(message_id=message_id)


class PendingCancel:
    """One cancel that waits until all its replies have ended, then answers with `cancelled`."""

    def __init__(self, outbox: ClientOutbox, connection: ConnectedClient, frame_id: str) -> None:
        self._outbox = outbox
        self.connection = connection
        self._frame = CancelledFrame(id=frame_id)
        self._waiting = 0
        self._is_answered = False

    def add(self, message_id: str) -> ReplyCancel:
        """Add a reply to wait for."""
        self._waiting += 1
        return ReplyCancel(self, message_id)

    def ended(self, message_id: str, state: MessageState.ValueType) -> None:
        """A reply has ended."""
        self._frame.replies.append(CancelledReply(message_id=message_id, state=state))
        self._waiting -= 1
        if not self._waiting:
            self._answer()

    def prevented(self, found: bool) -> None:
        """No reply was open; `found` is whether one would have followed."""
        self._frame.prevented = found
        self._answer()

    def not_ended(self, reason: Refused) -> None:
        """A reply could not be ended; answer with `error`."""
        if not self._is_answered:
            self._is_answered = True
            self._outbox.refuse(self.connection, self._frame.id, reason)

    def _answer(self) -> None:
        if not self._is_answered:
            self._is_answered = True
            size = self._frame.ByteSize()
            self._outbox.send(self.connection, size).cancelled.CopyFrom(self._frame)


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
    """Listener of the lookup of a message by the id that its client gave it."""

    __slots__ = ("_cancellations", "_frame", "_sender", "_topic")

    connection: ConnectedClient | None = None

    def __init__(
        self, cancellations: Cancellations, sender: ConnectedClient, topic: TopicKey, frame: CancelFrame
    ) -> None:
        self._cancellations = cancellations
        self._sender = sender
        self._topic = topic
        self._frame = frame

    @property
    def blocked_by(self) -> set[Link]:
        """Shared by all clients of an edge."""
        return self._sender.link.blocked_by

    def committed(self, pending: PendingEntry) -> None:
        """The message exists."""
        self._cancellations.found(self._sender, self._topic, self._frame.id, pending.message)

    def refused(self, pending: PendingEntry, reason: Refused) -> None:
        """The message does not exist, or the log is unavailable."""
        if pending.result is AppendResult.NO_REPEAT:
            reason = catalogue.MESSAGE_NOT_FOUND.refused(message_id=self._frame.client_id)
        self._cancellations.refuse(self._sender, self._frame.id, reason)
