"""What clients ask: messages, groups, history, signals."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from trunkline.v1 import catalogue
from trunkline.v1.catalogue import Refused
from trunkline.v1.frame_pb2 import (
    CancelFrame,
    ClientFrame,
    DeliveredFrame,
    EditFrame,
    HistoryFrame,
    MessageFrame,
    ReadFrame,
    RecallFrame,
    SignalFrame,
    SubscribeFrame,
    UnsubscribeFrame,
)
from trunkline.v1.message_pb2 import (
    CHANGE_KIND_EDITED,
    CHANGE_KIND_RECALLED,
    ROLE_USER,
    Author,
    Message,
)

from trunkline_router.core.clients.cancellation import Cancellations
from trunkline_router.core.clients.edits import EditRequest, Edits
from trunkline_router.core.clients.message_completion import ClientMessageCompletion
from trunkline_router.core.clients.receipts import Receipts
from trunkline_router.core.clients.subscribing import SubscribeOperation
from trunkline_router.core.clients.token_updates import TokenUpdates
from trunkline_router.core.commits.commit_queue import CommitQueue
from trunkline_router.core.commits.effects import Read, ReadPages
from trunkline_router.core.commits.publishing import (
    PublishPipeline,
    content_digest,
    described,
    idempotency_key,
)
from trunkline_router.core.directory.client_outbox import ClientOutbox
from trunkline_router.core.directory.connections import ConnectedClient, Link, Topic
from trunkline_router.core.directory.directory import Directory
from trunkline_router.core.directory.presence import Presence
from trunkline_router.core.replies.open_messages import OpenMessages
from trunkline_router.core.validation.validator import check, topic_address
from trunkline_router.core.values.log_records import Page, PageRequest, PendingEntry
from trunkline_router.core.values.message_states import COMPLETE
from trunkline_router.core.values.topics import (
    GROUP,
    NO_TARGET,
    PERSON,
    Position,
    TopicKey,
    address_of,
    position_of,
    topic_of,
)

DEFAULT_PAGE = 50
#: A page of history is one frame, which a client takes as one piece.
MAX_PAGE_BYTES = 512 * 1024


class FrameDispatcher:
    """Deals with the frames of clients. What is refused is answered; the connection goes on."""

    def __init__(
        self,
        directory: Directory,
        commit_queue: CommitQueue,
        publishing: PublishPipeline,
        presence: Presence,
        answers: ClientOutbox,
        open_messages: OpenMessages,
        cancelling: Cancellations,
        changing: Edits,
        receipts: Receipts,
        granting: TokenUpdates,
        reads: list[Read],
        join: Callable[..., SubscribeOperation],
        peek: Callable[[TopicKey], Position | None],
    ) -> None:
        self._directory = directory
        self._commit_queue = commit_queue
        self._publishing = publishing
        self._presence = presence
        self._answers = answers
        self._open_messages = open_messages
        self._cancelling = cancelling
        self._changing = changing
        self._receipts = receipts
        self._granting = granting
        self._reads = reads
        self._join = join
        self._peek = peek
        self._handlers: dict[str, Callable[[ConnectedClient, Any], None]] = {
            "message": self._message,
            "subscribe": self._subscribe,
            "unsubscribe": self._unsubscribe,
            "history": self._history,
            "signal": self._signal,
            "read": self._read,
            "delivered": self._delivered,
            "cancel": self._cancel,
            "edit": self._edit,
            "recall": self._recall,
        }

    def received(self, link: Link, number: int, frame: ClientFrame, now: float) -> None:
        """A client sent a frame."""
        connection = link.connections.get(number)
        if connection is None:
            return
        kind = frame.WhichOneof("frame") or "unknown"
        handler = self._handlers.get(kind)
        tenant = connection.tenant
        try:
            if handler is None:
                raise catalogue.UNKNOWN_FRAME_TYPE.refused(type=kind)
            if not tenant.is_active:
                tenant.check_active()
            if connection.allowed is not None:
                connection.allowed.check_frame(kind)
            tenant.take(frame.ByteSize(), now)
            handler(connection, getattr(frame, kind))
        except Refused as reason:
            tenant.refused[reason.entry.code] += 1
            frame_id = getattr(getattr(frame, kind, None), "id", "")
            self._answers.refuse(connection, frame_id, reason)

    def _message(self, connection: ConnectedClient, frame: MessageFrame) -> None:
        check(frame)
        topic = self._own(connection, frame)
        message = Message(
            address=address_of(topic),
            parts=frame.parts,
            reply_to=frame.reply_to,
            client_id=frame.id,
            state=COMPLETE,
        )
        author = message.author
        author.role = ROLE_USER
        author.user = connection.user
        if frame.attributes:
            message.attributes.update(frame.attributes)
        serialized = frame.SerializeToString(deterministic=True)
        pending = PendingEntry(
            topic=topic,
            message=message,
            key=idempotency_key(connection.tenant, "client", topic, connection.user, frame.id),
            digest=content_digest(serialized),
            deliver=True,
            listener=ClientMessageCompletion(self._answers, connection, frame.id),
        )
        self._commit_queue.add(pending, len(serialized))

    def _subscribe(self, connection: ConnectedClient, frame: SubscribeFrame) -> None:
        check(frame)
        key: TopicKey = (*connection.home[:3], frame.conversation.kind, frame.conversation.id)
        if frame.conversation.kind != GROUP:
            raise catalogue.CONVERSATION_FORBIDDEN.refused(conversation=_named(key))
        if connection.allowed is not None and not connection.allowed.may_join(key[4]):
            raise catalogue.FORBIDDEN.refused(problem=f"the token does not allow {_named(key)}")
        limit = connection.tenant.limits.conversations
        if not connection.hears(key) and len(connection.groups) + connection.joining >= limit:
            raise catalogue.TOO_MANY_TOPICS.refused(limit=limit)
        topic = self._directory.enter(key, self._peek(key))
        wanted = {key: position_of(frame.position)} if frame.HasField("position") else {}
        answered = partial(self._subscribed, connection, frame.id, topic)
        failed = partial(self._not_subscribed, connection, frame.id)
        connection.joining += 1
        self._join(connection, [topic], wanted, answered, failed).begin()

    def _subscribed(
        self,
        connection: ConnectedClient,
        frame_id: str,
        topic: Topic,
        recovered: bool,
        starts: list[Position],
    ) -> None:
        connection.joining -= 1
        if not connection.hears(topic.key):
            self._presence.joined(connection, topic.key)
        subscribed = self._answers.send(connection, 128).subscribed
        subscribed.id = frame_id
        subscribed.address.CopyFrom(topic.address)
        subscribed.position.CopyFrom(starts[0].to_proto())
        subscribed.recovered = recovered

    def _not_subscribed(self, connection: ConnectedClient, frame_id: str) -> None:
        connection.joining -= 1
        self._answers.refuse(connection, frame_id, catalogue.LOG_UNAVAILABLE.refused())

    def _unsubscribe(self, connection: ConnectedClient, frame: UnsubscribeFrame) -> None:
        check(frame)
        topic = self._heard(connection, frame)
        if topic.key == connection.home:
            problem = "the conversation that the connection was made to is left by disconnecting"
            raise catalogue.INVALID_ARGUMENT.refused(field="conversation", problem=problem)
        self._granting.leave(connection, topic, frame.id)

    def _history(self, connection: ConnectedClient, frame: HistoryFrame) -> None:
        check(frame)
        topic = self._own(connection, frame)
        cursor = frame.WhichOneof("cursor")
        request = PageRequest(
            topic,
            frame.limit or DEFAULT_PAGE,
            after=position_of(frame.after) if cursor == "after" else None,
            before=position_of(frame.before) if cursor == "before" else None,
            max_bytes=MAX_PAGE_BYTES,
            messages_only=True,
        )
        self._read_history(connection, frame.id, request)

    def _read_history(self, connection: ConnectedClient, frame_id: str, request: PageRequest) -> None:
        failed = partial(self._answers.refuse, connection, frame_id, catalogue.LOG_UNAVAILABLE.refused())
        done = partial(self._history_read, connection, frame_id, request)
        self._reads.append(ReadPages([request], done, failed, connection.link))

    def _history_read(
        self, connection: ConnectedClient, frame_id: str, request: PageRequest, pages: list[Page]
    ) -> None:
        page = pages[0]
        if not page.valid:
            self._answers.refuse(connection, frame_id, catalogue.CURSOR_MISMATCH.refused())
            return
        messages = self._open_messages.as_they_are(request.topic, page)
        if messages is None:
            self._read_history(connection, frame_id, request)
            return
        size = sum(len(entry.body) for entry in page.entries)
        history = self._answers.send(connection, size).history
        history.id = frame_id
        history.more = page.more
        history.messages.extend(messages)

    def _signal(self, connection: ConnectedClient, frame: SignalFrame) -> None:
        check(frame)
        topic = self._own(connection, frame)
        listener = ClientMessageCompletion(self._answers, connection, "")
        for publish in self._publishing.fan_out(topic, frame.ByteSize(), listener):
            signal = publish.frame.signal
            signal.CopyFrom(frame)
            signal.user = connection.user
            signal.conversation.CopyFrom(address_of(topic).conversation)

    def _read(self, connection: ConnectedClient, frame: ReadFrame) -> None:
        check(frame)
        self._receipts.read(connection, self._heard(connection, frame), frame)

    def _delivered(self, connection: ConnectedClient, frame: DeliveredFrame) -> None:
        check(frame)
        self._receipts.delivered(connection, self._delivered_in(connection, frame), frame)

    def _delivered_in(self, connection: ConnectedClient, frame: DeliveredFrame) -> Topic:
        """The topic that a `delivered` is about: any that the connection hears."""
        if not frame.HasField("address"):
            return self._heard(connection, frame)
        if frame.HasField("conversation"):
            problem = "must not be set where conversation is"
            raise catalogue.INVALID_ARGUMENT.refused(field="address", problem=problem)
        topic = connection.hears(topic_of(topic_address(frame.address)))
        if topic is None:
            raise catalogue.NOT_SUBSCRIBED.refused(conversation=described(frame.address))
        return topic

    def _cancel(self, connection: ConnectedClient, frame: CancelFrame) -> None:
        check(frame)
        target = frame.WhichOneof("target")
        if target is None:
            problem = "one of message_id and client_id must be set"
            raise catalogue.INVALID_ARGUMENT.refused(field="target", problem=problem)
        if target == "message_id":
            self._cancelling.reply(connection, frame)
        else:
            self._cancelling.by_client_id(connection, self._heard(connection, frame), frame)

    def _edit(self, connection: ConnectedClient, frame: EditFrame) -> None:
        check(frame)
        wish = self._wish(connection, frame, CHANGE_KIND_EDITED)
        wish.parts = frame.parts
        self._changing.wish(wish)

    def _recall(self, connection: ConnectedClient, frame: RecallFrame) -> None:
        check(frame)
        self._changing.wish(self._wish(connection, frame, CHANGE_KIND_RECALLED))

    def _wish(self, connection: ConnectedClient, frame: Any, kind: Any) -> EditRequest:
        user = connection.user

        def may(message: Message) -> None:
            if not connection.takes_part_in(topic_of(message.address)):
                raise catalogue.MESSAGE_NOT_FOUND.refused(message_id=message.id)
            if not user or message.author.role != ROLE_USER or message.author.user != user:
                raise catalogue.NOT_THE_AUTHOR.refused(message_id=message.id)

        def unchanged() -> None:
            ack = self._answers.send(connection, 128).ack
            ack.id = frame.id
            ack.message_id = frame.message_id

        return EditRequest(
            tenant=connection.home[0],
            message_id=frame.message_id,
            kind=kind,
            author=Author(role=ROLE_USER, user=user),
            may=may,
            listener=ClientMessageCompletion(self._answers, connection, frame.id),
            unchanged=unchanged,
            key=lambda topic: idempotency_key(connection.tenant, "change", topic, user, frame.id),
            digest=content_digest(frame.SerializeToString(deterministic=True)),
        )

    def _heard(self, connection: ConnectedClient, frame: Any) -> Topic:
        """The conversation that a frame is about, which the connection must have joined."""
        key = _meant(connection, frame)
        topic = connection.hears(key)
        if topic is None:
            raise catalogue.NOT_SUBSCRIBED.refused(conversation=_named(key))
        return topic

    def _own(self, connection: ConnectedClient, frame: Any) -> TopicKey:
        """The conversation that a frame is about, in which the client takes part, if perhaps in silence."""
        key = _meant(connection, frame)
        if not connection.takes_part_in(key):
            raise catalogue.NOT_SUBSCRIBED.refused(conversation=_named(key))
        return key


def _meant(connection: ConnectedClient, frame: Any) -> TopicKey:
    key = connection.home
    if frame.HasField("conversation"):
        key = (*key[:3], frame.conversation.kind, frame.conversation.id)
    elif key[3] == NO_TARGET:
        problem = "must be set, as the connection was made to no conversation"
        raise catalogue.INVALID_ARGUMENT.refused(field="conversation", problem=problem)
    return key


def _named(key: TopicKey) -> str:
    return f"{'person' if key[3] == PERSON else 'group'}:{key[4]}"
