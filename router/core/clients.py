"""Clients on edges: connecting, what they send, and going away."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from sys import intern
from typing import Any

from trunkline.v1 import catalogue
from trunkline.v1.address_pb2 import Position as PositionProto
from trunkline.v1.catalogue import Refused
from trunkline.v1.edge_service_pb2 import ConnectionOpened
from trunkline.v1.frame_pb2 import (
    ClientFrame,
    HistoryFrame,
    MessageFrame,
    ReadFrame,
    ServerFrame,
    SignalFrame,
    SubscribeFrame,
    UnsubscribeFrame,
)
from trunkline.v1.message_pb2 import ROLE_USER, Message

from router.core.directory import Connection, Directory, Link, Topic, topics_heard
from router.core.effects import Read, ReadPages
from router.core.errors import closing_frame, error_frame
from router.core.joining import Joining, Relinking
from router.core.journal import Draft, Page, PageRequest
from router.core.journal_queue import JournalQueue
from router.core.limits import check
from router.core.policies import Policies
from router.core.presence import Presence
from router.core.publishing import COMPLETE, Publishing, content_digest, idempotency_key
from router.core.topics import EMPTY, GROUP, NO_TARGET, PERSON, Position, TopicKey, address_of, topic_of

DEFAULT_PAGE = 50
#: A page of history is one frame, which a client takes as one piece.
MAX_PAGE_BYTES = 512 * 1024


class Clients:
    """Deals with what edges tell of their clients."""

    def __init__(
        self,
        directory: Directory,
        policies: Policies,
        journal: JournalQueue,
        publishing: Publishing,
        presence: Presence,
        reads: list[Read],
        mail: set[Link],
        peek: Callable[[TopicKey], Position | None],
    ) -> None:
        self._directory = directory
        self._policies = policies
        self._journal = journal
        self._publishing = publishing
        self._presence = presence
        self._reads = reads
        self._mail = mail
        self._peek = peek
        self._relinking = Relinking(directory, reads, mail, self._lost_its_place)
        self._handlers: dict[str, Callable[[Connection, Any], None]] = {
            "message": self._message,
            "subscribe": self._subscribe,
            "unsubscribe": self._unsubscribe,
            "history": self._history,
            "signal": self._signal,
            "read": self._read,
        }

    # Connecting and going away

    def opened(self, link: Link, entry: ConnectionOpened) -> None:
        """A client wants to connect, or is made known again on a new link."""
        number = entry.connection
        try:
            home = self._admitted(entry)
        except Refused as reason:
            self._close(link, number, reason)
            return
        connection = Connection(link, number, entry.connection_id, home, entry.user)
        connection.protocol = entry.protocol
        connection.opened_ms = entry.opened_at.ToMilliseconds()
        link.connections[number] = connection
        keys = topics_heard(home, entry.user)
        if entry.restored:
            keys += [(*home[:3], group.kind, group.id) for group in entry.groups]
        topics = [self._directory.enter(key, self._peek(key)) for key in keys]
        if entry.restored:
            self._relinking.restored(connection, topics)
            self._presence.opened(connection)
            return
        wanted = _positions(entry.resume.positions)
        answered = partial(self._connected, connection, topics)
        failed = partial(self._close, link, number, catalogue.ROUTER_UNAVAILABLE.refused())
        self._joining(connection, topics, wanted, answered, failed).begin()

    def _admitted(self, entry: ConnectionOpened) -> TopicKey:
        address = entry.address
        try:
            check(entry)
            for field in ("tenant", "agent", "platform"):
                if not getattr(address, field):
                    raise catalogue.INVALID_ARGUMENT.refused(field=field, problem="must be set")
            if address.WhichOneof("target") not in (None, "conversation"):
                problem = "a client connects to a conversation, or to none"
                raise catalogue.INVALID_ARGUMENT.refused(field="address", problem=problem)
        except Refused as reason:
            raise catalogue.INVALID_ADDRESS.refused(problem=str(reason)) from None
        self._policies.admit(address.tenant, entry.remote_ip)
        tenant, agent, platform, kind, ident = topic_of(address)
        # Thousands of connections share these, and each would keep a copy of its own.
        return (intern(tenant), intern(agent), intern(platform), kind, ident)

    def _connected(
        self, connection: Connection, topics: list[Topic], recovered: bool, starts: list[Position]
    ) -> None:
        connected = self._send(connection, 512).connected
        connected.connection_id = connection.id
        connected.address.CopyFrom(address_of(connection.home))
        connected.user = connection.user
        connected.recovered = recovered
        connected.limits.conversations = self._policies.max_conversations
        for topic, start in zip(topics, starts, strict=True):
            connected.positions.add(address=topic.address, position=start.to_proto())
        self._presence.opened(connection)

    def closed(self, link: Link, number: int) -> None:
        """A client is gone. Frames for it that are on their way are dropped by the edge."""
        connection = link.connections.pop(number, None)
        if connection is None:
            return
        self._presence.closed(connection)
        for topic in connection.topics:
            self._directory.part(connection, topic)
            self._directory.leave(topic)
        self._mail.add(link)

    def close(self, connection: Connection, reason: Refused) -> None:
        """Have a connection closed; it is gone once its edge says so."""
        self._close(connection.link, connection.number, reason)

    def _close(self, link: Link, number: int, reason: Refused) -> None:
        close = link.outbox.add(256).close
        close.connection = number
        close.closing.CopyFrom(closing_frame(reason))
        self._mail.add(link)

    def _lost_its_place(self, connection: Connection) -> None:
        self.close(connection, catalogue.POSITION_LOST.refused())

    # What clients send

    def received(self, link: Link, number: int, frame: ClientFrame) -> None:
        """A client sent a frame. What is refused is answered; the connection goes on."""
        connection = link.connections.get(number)
        if connection is None:
            return
        kind = frame.WhichOneof("frame") or "unknown"
        handler = self._handlers.get(kind)
        try:
            if handler is None:
                raise catalogue.UNKNOWN_FRAME_TYPE.refused(type=kind)
            handler(connection, getattr(frame, kind))
        except Refused as reason:
            frame_id = getattr(getattr(frame, kind, None), "id", "")
            self.refuse(connection, frame_id, reason)

    def _message(self, connection: Connection, frame: MessageFrame) -> None:
        check(frame)
        topic = self._heard(connection, frame)
        message = Message(
            address=topic.address,
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
        draft = Draft(
            topic=topic.key,
            message=message,
            key=idempotency_key("client", topic.key, connection.user, frame.id),
            digest=content_digest(serialized),
            deliver=True,
            origin=Said(self, connection, frame.id),
        )
        self._journal.add(draft, len(serialized))

    def _subscribe(self, connection: Connection, frame: SubscribeFrame) -> None:
        check(frame)
        key: TopicKey = (*connection.home[:3], frame.conversation.kind, frame.conversation.id)
        if frame.conversation.kind != GROUP:
            raise catalogue.CONVERSATION_FORBIDDEN.refused(conversation=_named(key))
        limit = self._policies.max_conversations
        if not connection.hears(key) and len(connection.groups) + connection.joining >= limit:
            raise catalogue.TOO_MANY_TOPICS.refused(limit=limit)
        topic = self._directory.enter(key, self._peek(key))
        wanted = {key: _position(frame.position)} if frame.HasField("position") else {}
        answered = partial(self._subscribed, connection, frame.id, topic)
        failed = partial(self._not_subscribed, connection, frame.id)
        connection.joining += 1
        self._joining(connection, [topic], wanted, answered, failed).begin()

    def _subscribed(
        self, connection: Connection, frame_id: str, topic: Topic, recovered: bool, starts: list[Position]
    ) -> None:
        connection.joining -= 1
        if not connection.hears(topic.key):
            self._presence.joined(connection, topic.key)
        subscribed = self._send(connection, 128).subscribed
        subscribed.id = frame_id
        subscribed.address.CopyFrom(topic.address)
        subscribed.position.CopyFrom(starts[0].to_proto())
        subscribed.recovered = recovered

    def _not_subscribed(self, connection: Connection, frame_id: str) -> None:
        connection.joining -= 1
        self.refuse(connection, frame_id, catalogue.LOG_UNAVAILABLE.refused())

    def _unsubscribe(self, connection: Connection, frame: UnsubscribeFrame) -> None:
        check(frame)
        topic = self._heard(connection, frame)
        if topic.key == connection.home:
            problem = "the conversation that the connection was made to is left by disconnecting"
            raise catalogue.INVALID_ARGUMENT.refused(field="conversation", problem=problem)
        link_topic = topic.on(connection.link)
        leave = connection.link.outbox.add().leave
        leave.connection = connection.number
        if link_topic is not None:
            leave.topics.append(link_topic.number)
        unsubscribed = self._send(connection, 128).unsubscribed
        unsubscribed.id = frame.id
        unsubscribed.address.CopyFrom(topic.address)
        self._presence.left(connection, topic.key)
        connection.topics.remove(topic)
        self._directory.part(connection, topic)
        self._directory.leave(topic)

    def _history(self, connection: Connection, frame: HistoryFrame) -> None:
        check(frame)
        topic = self._heard(connection, frame)
        cursor = frame.WhichOneof("cursor")
        request = PageRequest(
            topic.key,
            frame.limit or DEFAULT_PAGE,
            after=_position(frame.after) if cursor == "after" else None,
            before=_position(frame.before) if cursor == "before" else None,
            max_bytes=MAX_PAGE_BYTES,
        )
        failed = partial(self.refuse, connection, frame.id, catalogue.LOG_UNAVAILABLE.refused())
        done = partial(self._history_read, connection, frame.id)
        self._reads.append(ReadPages([request], done, failed, connection.link))

    def _history_read(self, connection: Connection, frame_id: str, pages: list[Page]) -> None:
        page = pages[0]
        if not page.valid:
            self.refuse(connection, frame_id, catalogue.CURSOR_MISMATCH.refused())
            return
        history = self._send(connection, sum(len(stored) for _, stored in page.messages)).history
        history.id = frame_id
        history.more = page.more
        for _, stored in page.messages:
            history.messages.add().MergeFromString(stored)

    def _signal(self, connection: Connection, frame: SignalFrame) -> None:
        check(frame)
        topic = self._heard(connection, frame)
        for publish in self._publishing.fan_out(topic.key, frame.ByteSize(), Said(self, connection, "")):
            signal = publish.frame.signal
            signal.CopyFrom(frame)
            signal.user = connection.user
            signal.conversation.CopyFrom(topic.address.conversation)

    def _read(self, connection: Connection, frame: ReadFrame) -> None:
        check(frame)
        topic = self._heard(connection, frame)
        known = topic.position or EMPTY
        if frame.position.epoch != known.epoch or frame.position.seq > known.seq:
            raise catalogue.CURSOR_MISMATCH.refused()
        for publish in self._publishing.fan_out(topic.key, 128, Said(self, connection, "")):
            read = publish.frame.read
            read.position.CopyFrom(frame.position)
            read.user = connection.user
            read.conversation.CopyFrom(topic.address.conversation)

    # Shared by the above

    def _heard(self, connection: Connection, frame: Any) -> Topic:
        """The conversation that a frame is about, which the connection must have joined."""
        key = connection.home
        if frame.HasField("conversation"):
            key = (*key[:3], frame.conversation.kind, frame.conversation.id)
        elif key[3] == NO_TARGET:
            problem = "must be set, as the connection was made to no conversation"
            raise catalogue.INVALID_ARGUMENT.refused(field="conversation", problem=problem)
        topic = connection.hears(key)
        if topic is None:
            raise catalogue.NOT_SUBSCRIBED.refused(conversation=_named(key))
        return topic

    def _joining(
        self,
        connection: Connection,
        topics: list[Topic],
        wanted: dict[TopicKey, Position],
        answered: Callable[[bool, list[Position]], None],
        failed: Callable[[], None],
    ) -> Joining:
        directory = self._directory
        return Joining(directory, self._reads, self._mail, connection, topics, wanted, answered, failed)

    def _send(self, connection: Connection, size: int) -> ServerFrame:
        send = connection.link.outbox.add(size).send
        send.connection = connection.number
        # Answers fill an outbox as well as messages do, and then it is the asking that must stop.
        self._publishing.mailed(connection.link, connection.link.held_up_by)
        return send.frame

    def refuse(self, connection: Connection, frame_id: str, reason: Refused) -> None:
        """Answer a frame with `error`."""
        self._send(connection, 256).error.CopyFrom(error_frame(reason, frame_id))

    def acknowledge(self, connection: Connection, frame_id: str, draft: Draft) -> None:
        """What a client said is on disk."""
        ack = self._send(connection, 128).ack
        message = draft.message
        ack.id = frame_id
        ack.message_id = message.id
        ack.position.CopyFrom(message.position)
        ack.address.CopyFrom(message.address)


class Said:
    """Origin of what a client says."""

    __slots__ = ("_clients", "_frame_id", "connection")

    def __init__(self, clients: Clients, connection: Connection, frame_id: str) -> None:
        self._clients = clients
        self._frame_id = frame_id
        self.connection: Connection | None = connection

    @property
    def held_up_by(self) -> set[Link]:
        """An edge's clients are held back together, by the credit of its link."""
        assert self.connection is not None
        return self.connection.link.held_up_by

    def committed(self, draft: Draft) -> None:
        """Answer with `ack`, which never comes before what stands ahead of the message in the log."""
        connection = self.connection
        assert connection is not None
        acknowledge = partial(self._clients.acknowledge, connection, self._frame_id, draft)
        topic = connection.hears(draft.topic)
        link_topic = topic.on(connection.link) if topic else None
        if link_topic is not None and link_topic.catchup is not None:
            link_topic.catchup.waiters.append(acknowledge)
        else:
            acknowledge()

    def refused(self, draft: Draft, reason: Refused) -> None:
        """Answer with `error`."""
        assert self.connection is not None
        self._clients.refuse(self.connection, self._frame_id, reason)


def _position(proto: PositionProto) -> Position:
    return Position(proto.epoch, proto.seq)


def _positions(entries: Any) -> dict[TopicKey, Position]:
    return {topic_of(entry.address): _position(entry.position) for entry in entries}


def _named(key: TopicKey) -> str:
    return f"{'person' if key[3] == PERSON else 'group'}:{key[4]}"
