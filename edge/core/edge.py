"""The edge's core: clients on one side, one link on the other.

A shell calls it from one thread. After each call it writes what `dirty` connections have pending,
closes those that are CLOSING, stops reading from those in `hold`, reads again from those in
`release`, empties the three, and wakes the link's writer if `uplink.is_ready`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from trunkline.v1 import catalogue
from trunkline.v1.address_pb2 import Address
from trunkline.v1.catalogue import Entry, Refused
from trunkline.v1.edge_service_pb2 import ConnectionOpened, LinkResponse, RouterEntry, TopicFrame
from trunkline.v1.frame_pb2 import ClientFrame, ClosingFrame, PongFrame, ServerFrame

from edge.core.closing import closing_frame
from edge.core.connection import Connection, State, Topic
from edge.core.uplink import Uplink
from edge.dialects.codec import Codec, FrameRefused

#: Answers to requests; each ends one of `unanswered`.
_ANSWERS = frozenset({"ack", "error", "subscribed", "unsubscribed", "history"})
#: Followed by what was missed, and then by a `join`.
_ARRIVALS = frozenset({"connected", "subscribed"})
#: Requests: frames with an id that the router answers.
_REQUESTS = frozenset({"message", "subscribe", "unsubscribe", "history"})

#: From this size on a batch's credit is returned at once: under load, each batch is then as large as
#: what gathered while the one before was written, rather than a large one followed by small ones.
BULK_ENTRIES = 32


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of one edge."""

    frame_bytes: int = 1 << 20
    #: Requests of one connection that may wait for their answer, and their bytes.
    unanswered: int = 64
    unanswered_bytes: int = 256 * 1024
    #: Waiting for the router, beyond which clients that send are held back.
    uplink_bytes: int = 16 << 20
    #: Batches that the router may have under way.
    link_window: int = 4
    heartbeat_s: int = 25


@dataclass(slots=True)
class Counts:
    """What has happened since the edge started."""

    opened: int = 0
    closed: int = 0
    frames_in: int = 0
    frames_refused: int = 0
    #: Frames handed to sockets: one message to a thousand listeners counts a thousand.
    deliveries: int = 0
    batches_in: int = 0
    slow_consumers: int = 0
    links: int = 0


class EdgeCore:
    """Connections, topics and the uplink of one edge."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.uplink = Uplink(limits.uplink_bytes, limits.link_window)
        self.connections: dict[int, Connection] = {}
        self.dirty: set[Connection] = set()
        self.hold: set[Connection] = set()
        self.release: set[Connection] = set()
        self.counts = Counts()
        self.opening = 0
        self._last_number = 0
        self._topics: dict[int, Topic] = {}
        #: Topics of the last link, by address, until the new one gives them numbers.
        self._orphans: dict[bytes, Topic] = {}
        self._running: dict[Topic, None] = {}
        self._waiting_for_room: set[Connection] = set()
        self._handlers: dict[str, Callable[[RouterEntry], None]] = {
            "topic": self._topic_opened,
            "join": self._joined,
            "leave": self._left,
            "publish": self._publish,
            "send": self._send,
            "close": self._close,
            "forget": self._forget,
        }

    # Clients

    def open(self, socket: object, codec: Codec, opened: ConnectionOpened) -> Connection:
        """A client wants to connect. The answer comes by the link, or never: the shell has a limit."""
        self._last_number += 1
        opened.connection = self._last_number
        connection = Connection(self._last_number, socket, codec, opened.SerializeToString())
        self.connections[connection.number] = connection
        self.opening += 1
        if self.uplink.is_up:
            self.uplink.add(len(connection.opened)).opened.CopyFrom(opened)
        return connection

    def received(self, connection: Connection, payload: bytes) -> None:
        """A client sent a WebSocket message. What is refused is answered; the connection goes on."""
        if connection.state is State.OPENING:
            connection.early.append(payload)
            self._hold(connection)
        if connection.state is not State.OPEN:
            return
        self.counts.frames_in += 1
        try:
            frame = connection.codec.decode(payload)
        except FrameRefused as refused:
            self._refuse(connection, refused.entry, str(refused), refused.frame_id)
            return
        kind = frame.WhichOneof("frame")
        if kind == "ping":
            self._say(connection, ServerFrame(pong=PongFrame(id=frame.ping.id[:128])))
        elif kind == "disconnect":
            self.close(connection, catalogue.DISCONNECTED.refused())
        elif kind == "resume":
            entry = catalogue.UNEXPECTED_FRAME
            problem = "it can only be the first frame, after connecting with resume=frame"
            self._refuse(connection, entry, entry.sentence(type="resume", problem=problem), "")
        else:
            # As the link carries it: some JSON grows fivefold on the way.
            self._forward(connection, kind or "", frame, frame.ByteSize())

    def _forward(self, connection: Connection, kind: str, frame: ClientFrame, size: int) -> None:
        if kind in _REQUESTS:
            frame_id: str = getattr(frame, kind).id
            if frame_id in connection.unanswered:
                self._asked_twice(connection, kind, frame)
                return
            connection.unanswered[frame_id] = (frame, size)
            connection.unanswered_bytes += size
            if not self._has_room(connection):
                self._hold(connection)
        if not self.uplink.is_up:
            return
        entry = self.uplink.add(size).frame
        entry.connection = connection.number
        entry.frame.CopyFrom(frame)
        if self.uplink.is_full:
            self._waiting_for_room.add(connection)
            self._hold(connection)

    def _asked_twice(self, connection: Connection, kind: str, frame: ClientFrame) -> None:
        frame_id: str = getattr(frame, kind).id
        first, _ = connection.unanswered[frame_id]
        # The same again is a client's retry: the answer to the first is the answer to both.
        if first != frame:
            entry = catalogue.UNEXPECTED_FRAME
            problem = f"the id {frame_id} is that of a request still under way"
            self._refuse(connection, entry, entry.sentence(type=kind, problem=problem), "")

    def _has_room(self, connection: Connection) -> bool:
        few = len(connection.unanswered) < self.limits.unanswered
        return few and connection.unanswered_bytes <= self.limits.unanswered_bytes

    def _hold(self, connection: Connection) -> None:
        if not connection.held:
            connection.held = True
            self.hold.add(connection)
            self.release.discard(connection)

    def close(self, connection: Connection, reason: Refused) -> None:
        """Close a connection: a `closing` frame, then the WebSocket close with the entry's code."""
        self._end(connection, closing_frame(reason))

    def _end(self, connection: Connection, closing: ClosingFrame) -> None:
        if connection.state is State.CLOSING:
            return
        self._settle_runs(connection)
        self._say(connection, ServerFrame(closing=closing))
        self._mark_closing(connection)
        connection.closing = closing
        self._deafen(connection)
        connection.unanswered.clear()
        connection.unanswered_bytes = 0
        self._waiting_for_room.discard(connection)
        # Its side of the closing handshake is to be read.
        self._release(connection)
        self.dirty.add(connection)

    def gone(self, connection: Connection) -> None:
        """The socket is gone; to be called once per connection, whatever ended it."""
        if self.connections.pop(connection.number, None) is None:
            return
        self._mark_closing(connection)
        self._deafen(connection)
        connection.unanswered.clear()
        for group in (self.dirty, self.hold, self.release, self._waiting_for_room):
            group.discard(connection)
        if self.uplink.is_up:
            self.uplink.add().closed.connection = connection.number

    def _mark_closing(self, connection: Connection) -> None:
        if connection.state is State.OPENING:
            self.opening -= 1
        elif connection.state is State.OPEN:
            self.counts.closed += 1
        connection.state = State.CLOSING

    def _deafen(self, connection: Connection) -> None:
        for topic in connection.topics:
            topic.listeners.discard(connection)
        connection.topics.clear()

    def heartbeat(self, connections: Iterable[Connection]) -> list[Connection]:
        """One round over some connections. Returns those to ping; the silent ones are closed."""
        to_ping = []
        for connection in connections:
            if connection.state is not State.OPEN:
                continue
            # From one that is held nothing can be heard.
            if connection.heard or connection.held:
                connection.heard = False
                connection.silent_rounds = 0
            else:
                connection.silent_rounds += 1
            if connection.silent_rounds >= 2:
                self.close(connection, catalogue.HEARTBEAT_LOST.refused())
            else:
                to_ping.append(connection)
        return to_ping

    def _refuse(self, connection: Connection, entry: Entry, text: str, frame_id: str) -> None:
        self.counts.frames_refused += 1
        frame = ServerFrame()
        error = frame.error
        error.id, error.code, error.message = frame_id, entry.code, text
        error.retryable, error.retry_after_ms = entry.retryable, entry.retry_after_ms
        self._say(connection, frame)

    def _say(self, connection: Connection, frame: ServerFrame) -> None:
        if connection.state is State.CLOSING:
            return
        connection.pending.append(connection.encode(frame))
        self.counts.deliveries += 1
        self.dirty.add(connection)

    # The link

    def linked(self) -> None:
        """A link is up: make known all there is, then send again what was not answered.

        The router answers with new numbers for the topics and with what they have missed.
        """
        self.uplink.restart(is_up=True)
        self.counts.links += 1
        self._orphans = {address: topic for address, topic in self._orphans.items() if topic.listeners}
        for topic in self._orphans.values():
            entry = self.uplink.add(len(topic.address)).topic
            entry.address.MergeFromString(topic.address)
            entry.position.epoch, entry.position.seq = topic.epoch, topic.seq
        # Those accepted first: what their topics have missed must not be told to those that come new.
        for connection in sorted(self.connections.values(), key=lambda known: known.state is State.OPENING):
            if connection.state is State.CLOSING:
                continue
            opened = self.uplink.add(len(connection.opened)).opened
            opened.MergeFromString(connection.opened)
            if connection.state is State.OPEN:
                opened.restored = True
                opened.ClearField("resume")
                _add_groups(connection, opened)
        for connection in self.connections.values():
            for frame, size in connection.unanswered.values():
                entry_frame = self.uplink.add(size).frame
                entry_frame.connection = connection.number
                entry_frame.frame.CopyFrom(frame)

    def link_lost(self) -> None:
        """The link broke. Connections stay; what they ask for waits."""
        self.uplink.restart(is_up=False)
        self._orphans |= {topic.address: topic for topic in self._topics.values()}
        self._topics.clear()
        self._release_for_room()
        for connection in list(self.connections.values()):
            if connection.is_arriving:
                self.close(connection, catalogue.POSITION_LOST.refused())

    def link_received(self, batch: LinkResponse) -> None:
        """A batch came from the router. Its credit is to be returned by `dealt_with`."""
        self.uplink.credit += batch.credit
        if not batch.entries:
            return
        self.counts.batches_in += 1
        handlers = self._handlers
        for entry in batch.entries:
            kind = entry.WhichOneof("entry")
            if kind is not None:
                handlers[kind](entry)
        while self._running:
            self._flush(next(iter(self._running)))

    def dealt_with(self, entries: int) -> None:
        """A batch of so many entries is written to its sockets: the router may send another."""
        self.uplink.owe(at_once=entries >= BULK_ENTRIES)

    def drained(self) -> None:
        """A batch was written to the router."""
        if self._waiting_for_room and self.uplink.waiting_bytes <= self.uplink.max_bytes // 2:
            self._release_for_room()

    def _release_for_room(self) -> None:
        waiting, self._waiting_for_room = self._waiting_for_room, set()
        for connection in waiting:
            self._release(connection)

    def _release(self, connection: Connection) -> None:
        if connection.held and connection not in self._waiting_for_room and self._has_room(connection):
            connection.held = False
            self.release.add(connection)
            self.hold.discard(connection)

    # What the router tells

    def _topic_opened(self, entry: RouterEntry) -> None:
        opened = entry.topic
        address = opened.address.SerializeToString(deterministic=True)
        topic = self._orphans.pop(address, None)
        if topic is None:
            topic = Topic(opened.topic, address, opened.position.epoch, opened.position.seq)
        topic.number = opened.topic
        self._topics[topic.number] = topic

    def _joined(self, entry: RouterEntry) -> None:
        connection = self.connections.get(entry.join.connection)
        if connection is None or connection.state is State.CLOSING:
            return
        connection.is_arriving = False
        for number in entry.join.topics:
            topic = self._topics[number]
            self._flush(topic)
            if connection not in topic.listeners:
                topic.listeners.add(connection)
                connection.topics.append(topic)

    def _left(self, entry: RouterEntry) -> None:
        connection = self.connections.get(entry.leave.connection)
        if connection is None:
            return
        for number in entry.leave.topics:
            topic = self._topics[number]
            self._flush(topic)
            topic.listeners.discard(connection)
            if topic in connection.topics:
                connection.topics.remove(topic)

    def _forget(self, entry: RouterEntry) -> None:
        self._topics.pop(entry.forget.topic, None)

    def _publish(self, entry: RouterEntry) -> None:
        publish = entry.publish
        topic = self._topics.get(publish.topic)
        if topic is None:
            return
        frame = publish.frame
        excepted: int = getattr(publish, "except")
        if frame.HasField("message") and frame.message.HasField("position"):
            position = frame.message.position
            topic.epoch, topic.seq = position.epoch, position.seq
            if publish.replayed:
                excepted = self._author_waiting(topic, publish) or excepted
        topic.run.append((frame, excepted))
        self._running[topic] = None

    def _author_waiting(self, topic: Topic, publish: TopicFrame) -> int:
        """The connection that still waits for the `ack` of a replayed message, which is coming."""
        message = publish.frame.message
        for connection in topic.listeners if message.client_id else ():
            waiting = connection.unanswered.get(message.client_id)
            if waiting is not None and waiting[0].HasField("message"):
                opened = ConnectionOpened.FromString(connection.opened)
                asked = waiting[0].message
                home = opened.address.conversation
                said_in = asked.conversation if asked.HasField("conversation") else home
                if opened.user == message.author.user and said_in == message.address.conversation:
                    return connection.number
        return 0

    def _send(self, entry: RouterEntry) -> None:
        send = entry.send
        connection = self.connections.get(send.connection)
        if connection is None or connection.state is State.CLOSING:
            return
        self._settle_runs(connection)
        frame = send.frame
        kind = frame.WhichOneof("frame")
        if kind in _ANSWERS:
            self._answered(connection, getattr(frame, kind).id)
        elif kind == "connected":
            self._connected(connection, frame)
        if kind in _ARRIVALS:
            connection.is_arriving = True
        self._say(connection, frame)
        if connection.early:
            self._take_early(connection)

    def _connected(self, connection: Connection, frame: ServerFrame) -> None:
        connected = frame.connected
        connected.heartbeat_s = self.limits.heartbeat_s
        connected.limits.frame_bytes = self.limits.frame_bytes
        connected.limits.unanswered = self.limits.unanswered
        if connection.state is State.OPENING:
            connection.state = State.OPEN
            self.opening -= 1
            self.counts.opened += 1

    def _take_early(self, connection: Connection) -> None:
        """What the client sent before it was connected comes now."""
        early, connection.early = connection.early, []
        for payload in early:
            self.received(connection, payload)
        self._release(connection)

    def _answered(self, connection: Connection, frame_id: str) -> None:
        if frame_id in connection.unanswered:
            _, size = connection.unanswered.pop(frame_id)
            connection.unanswered_bytes -= size
            self._release(connection)

    def _close(self, entry: RouterEntry) -> None:
        connection = self.connections.get(entry.close.connection)
        if connection is not None:
            self._end(connection, entry.close.closing)

    # Fan-out

    def _settle_runs(self, connection: Connection) -> None:
        """What was published before this point comes before what is sent to the connection next."""
        if not self._running:
            return
        for topic in connection.topics:
            if topic in self._running:
                self._flush(topic)

    def _flush(self, topic: Topic) -> None:
        if topic in self._running:
            del self._running[topic]
            count = len(topic.run)
            listeners = topic.flush()
            self.counts.deliveries += count * len(listeners)
            self.dirty |= listeners


def _add_groups(connection: Connection, opened: ConnectionOpened) -> None:
    """The groups that a connection has joined beside the conversation it was made to."""
    for topic in connection.topics:
        address = Address.FromString(topic.address)
        if address.HasField("conversation") and address.conversation != opened.address.conversation:
            opened.groups.append(address.conversation)
