"""Topics, who hears them, and giving each listener what was published, as one piece."""

from __future__ import annotations

from collections.abc import Iterator

from trunkline.v1.address_pb2 import Position
from trunkline.v1.edge_service_pb2 import (
    ConnectionOpened,
    TopicFrame,
    TopicOpened,
    TopicsJoined,
    TopicsLeft,
)
from trunkline.v1.frame_pb2 import ServerFrame
from trunkline.v1.message_pb2 import (
    CHANGE_KIND_ENDED,
    CHANGE_KIND_RECALLED,
    MESSAGE_STATE_OPEN,
    Change,
    Message,
)

from trunkline_edge.core.connection import Connection, ConnectionState
from trunkline_edge.core.counters import EdgeCounters
from trunkline_edge.core.delivery_receipts import DeliveryReporter
from trunkline_edge.core.deltas import DeltaIndex, delta_range
from trunkline_edge.core.rollup import Rollup
from trunkline_edge.core.subscribers import OutgoingFrame
from trunkline_edge.core.topic import SubscribedTopic
from trunkline_edge.dialects.codec import Codec, StreamingMode

# To look up a member of an Enum takes long.
_SHOWN_WHOLE = StreamingMode.COMPLETE
_LAST_CHANGES = frozenset({CHANGE_KIND_ENDED, CHANGE_KIND_RECALLED})


class Fanout:
    """The topics that this edge's connections hear.

    Frames that are published gather in each topic's run until the end of the batch, or until something
    else is to be sent to a listener, which must come after it; deltas gather in their windows until
    then, or until another frame of their topic. Order is kept within a topic, and between topics and
    what is sent to one connection; not between topics, so a frame of one leaves the windows of others
    as they are. Connections that got something are put into `dirty`.
    """

    def __init__(
        self, connections: dict[int, Connection], counts: EdgeCounters, dirty: set[Connection]
    ) -> None:
        self._connections = connections
        self._counts = counts
        self._dirty = dirty
        self.rollup = Rollup(counts, dirty)
        self._topics: dict[int, SubscribedTopic] = {}
        #: Topics of the last link, by address, until the new one gives them numbers.
        self._orphans: dict[bytes, SubscribedTopic] = {}
        self._running: dict[SubscribedTopic, None] = {}

    def link_lost(self) -> None:
        """The numbers of the topics mean nothing any longer."""
        self._orphans |= {topic.address: topic for topic in self._topics.values()}
        self._topics.clear()

    def known(self) -> Iterator[SubscribedTopic]:
        """The topics to make known on a new link: those that somebody hears."""
        self._orphans = {address: topic for address, topic in self._orphans.items() if topic.audiences}
        yield from self._orphans.values()

    # Who hears what

    def topic(self, opened: TopicOpened) -> None:
        """The router gives a topic a number."""
        address = opened.address.SerializeToString(deterministic=True)
        topic = self._orphans.pop(address, None)
        if topic is None:
            topic = SubscribedTopic(opened.topic, address, opened.position.epoch, opened.position.seq)
        topic.number = opened.topic
        self._topics[topic.number] = topic

    def forget(self, number: int) -> None:
        """Nobody hears the topic any longer."""
        self._topics.pop(number, None)

    def join(self, join: TopicsJoined) -> None:
        """A connection hears topics from here on."""
        connection = self._connections.get(join.connection)
        if connection is None or connection.state is ConnectionState.CLOSING:
            return
        snapshots, connection.snapshots = connection.snapshots, None
        for number in join.topics:
            topic = self._topics[number]
            self._flush(topic)
            topic.join(connection)
            for address, message in snapshots or ():
                if address == topic.address:
                    _knows(connection, topic, message)
        if connection.delivered is not None:
            # It has taken what came before.
            self._dirty.add(connection)

    def leave(self, leave: TopicsLeft) -> None:
        """A connection does not hear topics any longer."""
        connection = self._connections.get(leave.connection)
        if connection is None:
            return
        # In the order published: what it hears elsewhere is not to come after what was said later here.
        for topic in [topic for topic in self._running if topic in connection.topics]:
            self._flush(topic)
        for number in leave.topics:
            topic = self._topics[number]
            if (audience := connection.topics.get(topic)) is not None:
                if audience.additions:
                    self.rollup.take(audience, connection)
                self._leave(connection, topic)

    def deafen(self, connection: Connection) -> None:
        """A connection hears nothing any longer."""
        for topic in list(connection.topics):
            self._leave(connection, topic)
        connection.snapshots = None

    def _leave(self, connection: Connection, topic: SubscribedTopic) -> None:
        if connection.delivered is not None:
            connection.delivered.left(topic)
        if (deserted := topic.leave(connection)) is not None:
            self.rollup.forget(deserted)

    # What they hear

    def publish(self, publish: TopicFrame) -> None:
        """A frame for all that hear a topic."""
        topic = self._topics.get(publish.topic)
        if topic is None:
            return
        frame = publish.frame
        kind = frame.WhichOneof("frame")
        if kind == "delta":
            self._add(topic, publish)
            return
        for audience in topic.audiences.values():
            if audience.additions:
                self.rollup.flush(audience, everybody=True)
        topic.run.append(_told(topic, publish, frame, kind))
        self._running[topic] = None

    def _add(self, topic: SubscribedTopic, publish: TopicFrame) -> None:
        """A delta comes after what was published so far. One that was told already is dropped."""
        count = publish.deltas or 1
        self._counts.deltas_in += count
        if not topic.audiences:
            return
        if topic.run:
            self._flush(topic)
        one = delta_range(publish.frame.delta, count, topic.delta_bytes)
        if one.index < topic.open.get(one.message_id, 0):
            return
        topic.open[one.message_id] = one.next_index
        topic.delta_bytes += one.size
        if topic.texts is not None:
            topic.texts.add(publish.frame.delta, count)
        for audience in topic.audiences.values():
            if audience.codec.streaming is not _SHOWN_WHOLE:
                self.rollup.add(audience, one)

    def advance(self, number: int, position: Position) -> None:
        """The topic's only listener made this entry itself; it is not published here."""
        topic = self._topics.get(number)
        if topic is not None:
            topic.advance(position)

    def snapshot(self, connection: Connection, message: Message) -> None:
        """One connection was sent an open message: deltas go on from there."""
        connection.goes_on = message.id, message.next_index
        address = message.address.SerializeToString(deterministic=True)
        if connection.snapshots is not None:
            # A copy, for the original holds on to the whole batch that it came in.
            kept = Message(id=message.id, next_index=message.next_index)
            if connection.codec.streaming is not StreamingMode.DELTAS:
                kept.CopyFrom(message)
            connection.snapshots.append((address, kept))
        for topic in connection.topics:
            if topic.address == address:
                _knows(connection, topic, message)

    def recode(self, connection: Connection, codec: Codec) -> None:
        """From here on a connection is spoken to by another codec; see Switch."""
        shown_deltas = {one.streaming is StreamingMode.DELTAS for one in (connection.codec, codec)}
        assert len(shown_deltas) == 1, "what was said so far is not known here, or not to the client"
        self.settle(connection)
        connection.codec = codec
        if codec.reports_delivery:
            connection.delivered = connection.delivered or DeliveryReporter()
        for topic in list(connection.topics):
            if (deserted := topic.move(connection)) is not None:
                self.rollup.forget(deserted)

    def settle(self, connection: Connection) -> None:
        """What was published before this point comes before what is sent to the connection next."""
        for topic, audience in connection.topics.items():
            if audience.additions:
                self.rollup.take(audience, connection)
            elif topic.run:
                self._flush(topic)

    def catch_up(self, connection: Connection) -> None:
        """A connection that lagged has taken all it was sent: now for what has gathered since."""
        for audience in connection.topics.values():
            if audience.is_behind(connection):
                self.rollup.take(audience, connection)

    def gathered_bytes(self, connection: Connection) -> int:
        """About how many bytes of deltas have gathered for a connection that lags."""
        return sum([audience.gathered_bytes(connection) for audience in connection.topics.values()])

    def settle_all(self, now: float) -> None:
        """The batch ends: everybody gets what was published, save for deltas whose window goes on."""
        while self._running:
            self._flush(next(iter(self._running)))
        self.rollup.end_batch(now)

    def _flush(self, topic: SubscribedTopic) -> None:
        if topic in self._running:
            del self._running[topic]
            run, topic.run = topic.run, []
            for audience in topic.audiences.values():
                if audience.tell(run, self._counts) or audience.codec.reports_delivery:
                    self._dirty |= audience.listeners


def _told(topic: SubscribedTopic, publish: TopicFrame, frame: ServerFrame, kind: str | None) -> OutgoingFrame:
    """The frame as the listeners are told it; the topic is as it is from here on."""
    excepted: int = getattr(publish, "except")
    if kind == "message":
        message = frame.message
        if message.HasField("position"):
            topic.advance(message.position)
            if publish.replayed:
                excepted = _author_waiting(topic, message) or excepted
        return frame, excepted, _note_message(topic, message), frame
    if kind == "change":
        whole = frame if topic.texts is None else ServerFrame(change=topic.texts.complete(frame.change))
        _note_change(topic, frame.change)
        return frame, excepted, None, whole
    if kind == "read" and frame.read.HasField("at"):
        topic.advance(frame.read.at)
    return frame, excepted, None, frame


def _note_message(topic: SubscribedTopic, message: Message) -> DeltaIndex | None:
    """An open message says where its deltas go on, for all who hear the topic."""
    if message.state == MESSAGE_STATE_OPEN:
        place = message.id, message.next_index
        topic.open[place[0]] = place[1]
        if topic.texts is not None:
            topic.texts.put(message)
        for audience in topic.audiences.values():
            audience.unskip(place[0])
        return place
    if topic.open:
        _note_end(topic, message.id)
    return None


def _note_change(topic: SubscribedTopic, change: Change) -> None:
    if change.HasField("position"):
        topic.advance(change.position)
    if change.kind in _LAST_CHANGES:
        _note_end(topic, change.message_id)


def _note_end(topic: SubscribedTopic, message_id: str) -> None:
    if topic.texts is not None:
        topic.texts.forget(message_id)
    if topic.open.pop(message_id, None) is not None:
        for audience in topic.audiences.values():
            audience.unskip(message_id)


def _knows(connection: Connection, topic: SubscribedTopic, message: Message) -> None:
    """A listener was sent this open message alone, as it is now; others may have come less far."""
    message_id, next_index = message.id, message.next_index
    if next_index > topic.open.setdefault(message_id, next_index):
        connection.topics[topic].skip(connection, message_id, next_index)
    if topic.texts is not None and connection.codec.streaming is not StreamingMode.DELTAS:
        topic.texts.offer(message)


def _author_waiting(topic: SubscribedTopic, message: Message) -> int:
    """The connection that still waits for the `ack` of a replayed message, which is coming."""
    for connection in topic.listeners() if message.client_id else ():
        waiting = connection.unanswered.get(message.client_id)
        if waiting is not None and waiting[0].HasField("message"):
            opened = ConnectionOpened.FromString(connection.opened)
            asked = waiting[0].message
            home = opened.address.conversation
            said_in = asked.conversation if asked.HasField("conversation") else home
            is_author = opened.user == message.author.user and said_in == message.address.conversation
            if is_author and not opened.echo:
                return connection.number
    return 0
