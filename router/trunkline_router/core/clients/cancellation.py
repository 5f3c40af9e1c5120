"""Clients that stop replies, before they exist or while they are open."""

from __future__ import annotations

from trunkline.v1 import catalogue
from trunkline.v1.catalogue import Refused
from trunkline.v1.frame_pb2 import CancelFrame, CancelledFrame, CancelledReply
from trunkline.v1.message_pb2 import ROLE_USER, Author, Message, MessageState

from trunkline_router.core.agents.dispatcher import Dispatcher
from trunkline_router.core.commits.commit_queue import CommitQueue
from trunkline_router.core.commits.publishing import idempotency_key
from trunkline_router.core.directory.client_outbox import ClientOutbox
from trunkline_router.core.directory.connections import ConnectedClient, Link, Topic
from trunkline_router.core.replies.open_messages import OpenMessages
from trunkline_router.core.replies.streamed_message import StreamedMessage
from trunkline_router.core.values.log_records import AppendResult, PendingEntry
from trunkline_router.core.values.message_states import OPEN
from trunkline_router.core.values.topics import GROUP, PERSON, Position, TopicKey, topic_of


class Cancellations:
    """Finds what a cancel is about, has it ended, and answers once that is on disk."""

    def __init__(
        self,
        commit_queue: CommitQueue,
        open_messages: OpenMessages,
        agents: Dispatcher,
        answers: ClientOutbox,
    ) -> None:
        self._commit_queue = commit_queue
        self._open_messages = open_messages
        self._agents = agents
        self._answers = answers

    def reply(self, connection: ConnectedClient, frame: CancelFrame) -> None:
        """Stop one reply. Raises Refused where it is none of the client's conversations."""
        cancel = PendingCancel(self._answers, connection, frame.id)
        message = self._open_messages.get(frame.message_id)
        if message is not None:
            _check_heard(connection, message.topic, frame.message_id)
            self._stop([message], cancel)
            return

        def again() -> None:
            try:
                self.reply(connection, frame)
            except Refused as reason:
                cancel.not_ended(reason)

        def found(ended: Message | None) -> None:
            if ended is None:
                cancel.not_ended(catalogue.MESSAGE_NOT_FOUND.refused(message_id=frame.message_id))
                return
            if ended.state == OPEN:
                # It begins, or ended, while the log was read.
                self._commit_queue.after_commit(again)
                return
            try:
                _check_heard(connection, topic_of(ended.address), frame.message_id)
            except Refused as reason:
                cancel.not_ended(reason)
                return
            cancel.add(ended.id).ended(ended.state, None)

        self._open_messages.find(connection.home[0], frame.message_id, found, cancel.not_ended)

    def by_client_id(self, connection: ConnectedClient, topic: Topic, frame: CancelFrame) -> None:
        """Stop all replies to a message of the client's user.

        The message may still be on its way to the log, so the question which one it is goes the same way.
        """
        key = idempotency_key(connection.tenant, "client", topic.key, connection.user, frame.client_id)
        listener = CancelQuestion(self, connection, topic.key, frame)
        self._commit_queue.add(
            PendingEntry(topic.key, Message(), key=key, repeat_only=True, listener=listener), 0
        )

    def found(self, connection: ConnectedClient, topic: TopicKey, frame_id: str, message: Message) -> None:
        """The message is this one: stop what answers it, and see that nothing else will."""
        cancel = PendingCancel(self._answers, connection, frame_id)
        heard = connection.hears(topic)
        known = heard.position if heard is not None else None
        if known is not None and known.epoch != message.position.epoch:
            # It was in a log that was erased.
            cancel.prevented(False)
            return
        replies = list(self._open_messages.replies_to(topic, message.id))
        if replies:
            self._agents.withdraw(topic, message)
            self._stop(replies, cancel)
        else:
            self._agents.withdraw(topic, message, cancel.prevented, cancel.not_ended)

    def refuse(self, connection: ConnectedClient, frame_id: str, reason: Refused) -> None:
        """Answer a cancel with `error`."""
        self._answers.refuse(connection, frame_id, reason)

    def _stop(self, replies: list[StreamedMessage], cancel: PendingCancel) -> None:
        author = Author(role=ROLE_USER, user=cancel.connection.user)
        listeners = [(reply, cancel.add(reply.id)) for reply in replies]
        for reply, listener in listeners:
            self._open_messages.cancel(reply, listener, author)


def _check_heard(connection: ConnectedClient, topic: TopicKey, message_id: str) -> None:
    """Only those who take part in a conversation may stop what is said there."""
    if topic[3] not in (PERSON, GROUP) or connection.hears(topic) is None:
        raise catalogue.MESSAGE_NOT_FOUND.refused(message_id=message_id)


class PendingCancel:
    """One cancel: waits until all that it is about has ended, then answers."""

    def __init__(self, answers: ClientOutbox, connection: ConnectedClient, frame_id: str) -> None:
        self._answers = answers
        self.connection = connection
        self._frame = CancelledFrame(id=frame_id)
        self._waiting = 0
        self._answered = False

    def add(self, message_id: str) -> ReplyCancel:
        """A reply that it is about."""
        self._waiting += 1
        return ReplyCancel(self, message_id)

    def ended(self, message_id: str, state: MessageState.ValueType) -> None:
        """One of them has ended."""
        self._frame.replies.append(CancelledReply(message_id=message_id, state=state))
        self._waiting -= 1
        if not self._waiting:
            self._answer()

    def prevented(self, found: bool) -> None:
        """There was no reply, and whether there would have been one."""
        self._frame.prevented = found
        self._answer()

    def _answer(self) -> None:
        if not self._answered:
            self._answered = True
            self._answers.send(self.connection, self._frame.ByteSize()).cancelled.CopyFrom(self._frame)

    def not_ended(self, reason: Refused) -> None:
        """It could not be done."""
        if not self._answered:
            self._answered = True
            self._answers.refuse(self.connection, self._frame.id, reason)


class ReplyCancel:
    """Origin of the end of one reply."""

    __slots__ = ("_cancel", "_message_id")

    def __init__(self, cancel: PendingCancel, message_id: str) -> None:
        self._cancel = cancel
        self._message_id = message_id

    def ended(self, state: MessageState.ValueType, position: Position | None) -> None:
        """It has ended, by this cancel or before."""
        self._cancel.ended(self._message_id, state)

    def not_ended(self, reason: Refused) -> None:
        """It could not be ended."""
        self._cancel.not_ended(reason)


class CancelQuestion:
    """Origin of the question which message a client's id stands for."""

    __slots__ = ("_cancelling", "_frame", "_sender", "_topic")

    connection: ConnectedClient | None = None

    def __init__(
        self, cancelling: Cancellations, sender: ConnectedClient, topic: TopicKey, frame: CancelFrame
    ) -> None:
        self._cancelling = cancelling
        self._sender = sender
        self._topic = topic
        self._frame = frame

    @property
    def blocked_by(self) -> set[Link]:
        """An edge's clients are held back together, by the credit of its link."""
        return self._sender.link.blocked_by

    def committed(self, pending: PendingEntry) -> None:
        """There is such a message."""
        self._cancelling.found(self._sender, self._topic, self._frame.id, pending.message)

    def refused(self, pending: PendingEntry, reason: Refused) -> None:
        """There is none, or the log cannot be asked."""
        if pending.result is AppendResult.NO_REPEAT:
            reason = catalogue.MESSAGE_NOT_FOUND.refused(message_id=self._frame.client_id)
        self._cancelling.refuse(self._sender, self._frame.id, reason)
