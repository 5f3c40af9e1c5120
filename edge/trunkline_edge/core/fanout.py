"""Fan-out: topics, their subscribers, and one delivery to each for all that was published together."""

from __future__ import annotations

from collections.abc import Collection, Iterator

from trunkline.v1.address_pb2 import Position
from trunkline.v1.edge_service_pb2 import TopicFrame, TopicOpened, TopicsJoined, TopicsLeft
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
from trunkline_edge.core.encoding import encode_frame
from trunkline_edge.core.rollup import Rollup
from trunkline_edge.core.subscribers import OutgoingFrame, SubscriberGroup
from trunkline_edge.core.topic import SubscribedTopic, TopicSignal
from trunkline_edge.core.topic_head import TopicHead
from trunkline_edge.core.topic_signals import TopicSignals, expired
from trunkline_edge.dialects.codec import Codec, StreamingMode

# A lookup of an Enum member is slow.
_COMPLETE = StreamingMode.COMPLETE
_LAST_CHANGES = frozenset({CHANGE_KIND_ENDED, CHANGE_KIND_RECALLED})

Subscriptions = dict[SubscribedTopic, SubscriberGroup]
_NONE: Subscriptions = {}


class Fanout:
    """Topics with subscribers on this edge.

    Published frames gather in their topic until the batch ends, or until something else must be sent to a
    subscriber after them. Deltas gather in windows until then, or until another frame of their topic.

    Order is kept within a topic, and between each topic and frames for one connection. Messages of different
    topics may change places: those of a topic that are ready together are delivered as one piece, encoded
    once for all subscribers, and a frame of one topic leaves the windows of others open. Connections with new
    pending data are added to `dirty`.
    """

    def __init__(
        self, connections: dict[int, Connection], counts: EdgeCounters, dirty: set[Connection]
    ) -> None:
        self._connections = connections
        self._counts = counts
        self._dirty = dirty
        self.rollup = Rollup(counts, dirty)
        self.topic_signals = TopicSignals()
        self._topics: dict[int, SubscribedTopic] = {}
        self._subscriptions: dict[Connection, Subscriptions] = {}
        #: Topics of the last link by address, until the new link numbers them.
        self._orphans: dict[bytes, SubscribedTopic] = {}
        #: Topics with pending frames.
        self._pending: dict[SubscribedTopic, None] = {}

    def link_lost(self) -> None:
        """Invalidate the topics' numbers; subscriptions stay."""
        self._orphans |= {topic.head.address: topic for topic in self._topics.values()}
        self._topics.clear()

    def topics_to_declare(self) -> Iterator[TopicHead]:
        """Iterate over the topics to declare on a new link: those with subscribers. Others are dropped."""
        for topic in self._orphans.values():
            if not topic.groups:
                self.topic_signals.forget_topic(topic)
        self._orphans = {address: topic for address, topic in self._orphans.items() if topic.groups}
        for topic in self._orphans.values():
            yield topic.head

    # Subscriptions

    def subscriptions_of(self, connection: Connection) -> Subscriptions:
        """Return the topics of a connection, each with its group; not to be modified."""
        return self._subscriptions.get(connection, _NONE)

    def heads_of(self, connection: Connection) -> Collection[TopicHead]:
        """Return the heads of a connection's topics."""
        return [topic.head for topic in self.subscriptions_of(connection)]

    def open_topic(self, opened: TopicOpened) -> None:
        """Number a topic on this link."""
        address = opened.address.SerializeToString(deterministic=True)
        topic = self._orphans.pop(address, None)
        if topic is None:
            head = TopicHead(address, opened.position.epoch, opened.position.seq)
            topic = SubscribedTopic(opened.topic, head)
        topic.number = opened.topic
        self._topics[topic.number] = topic

    def forget_topic(self, number: int) -> None:
        """Drop a topic without subscribers."""
        topic = self._topics.pop(number, None)
        if topic is not None:
            self.topic_signals.forget_topic(topic)

    def subscribe(self, joined: TopicsJoined) -> None:
        """Subscribe a connection to topics."""
        connection = self._connections.get(joined.connection)
        if connection is None or connection.state is ConnectionState.CLOSING:
            return
        snapshots, connection.snapshots = connection.snapshots, None
        subscriptions = self._subscriptions.setdefault(connection, {})
        for number in joined.topics:
            topic = self._topics[number]
            self._flush(topic)
            if topic not in subscriptions:
                subscriptions[topic] = topic.subscribe(connection)
                if connection.delivery_reporter is not None:
                    connection.delivery_reporter.subscribe(topic.head)
                self._send_signals(connection, topic)
            for address, message in snapshots or ():
                if address == topic.head.address:
                    self._note_snapshot(connection, topic, message)
        if connection.resume_cursor is not None:
            connection.resume_cursor.subscribe(self.heads_of(connection))
        if connection.delivery_reporter is not None:
            # The connection has received everything up to the heads.
            self._dirty.add(connection)

    def unsubscribe(self, left: TopicsLeft) -> None:
        """Unsubscribe a connection from topics, after everything published in them so far."""
        connection = self._connections.get(left.connection)
        if connection is None:
            return
        subscriptions = self.subscriptions_of(connection)
        for number in left.topics:
            topic = self._topics[number]
            self._flush(topic)
            if (group := subscriptions.get(topic)) is not None:
                if group.deltas:
                    self.rollup.flush_one(group, connection)
                del subscriptions[topic]
                self._leave(connection, topic, group)

    def unsubscribe_all(self, connection: Connection) -> None:
        """Unsubscribe a connection from everything; what waits for it is dropped."""
        for topic, group in self._subscriptions.pop(connection, _NONE).items():
            self._leave(connection, topic, group)
        connection.snapshots = None

    def _leave(self, connection: Connection, topic: SubscribedTopic, group: SubscriberGroup) -> None:
        if connection.delivery_reporter is not None:
            connection.delivery_reporter.unsubscribe(topic.head)
        if connection.resume_cursor is not None:
            connection.resume_cursor.unsubscribe(topic.head)
        if (empty := topic.unsubscribe(connection, group)) is not None:
            self.rollup.forget(empty)

    def switch_codec(self, connection: Connection, codec: Codec) -> None:
        """Encode for another codec from here on; see SwitchCodec."""
        streams_deltas = {one.streaming is StreamingMode.DELTAS for one in (connection.codec, codec)}
        assert len(streams_deltas) == 1, "the text so far is unknown here, or to the client"
        self.flush_for(connection)
        connection.codec = codec
        if codec.reports_delivery and connection.delivery_reporter is None:
            connection.delivery_reporter = DeliveryReporter(self.heads_of(connection))
        subscriptions = self.subscriptions_of(connection)
        for topic, group in subscriptions.items():
            subscriptions[topic], empty = topic.move(connection, group)
            if empty is not None:
                self.rollup.forget(empty)

    # Frames

    def publish(self, published: TopicFrame) -> None:
        """Queue a frame for the subscribers of a topic."""
        topic = self._topics.get(published.topic)
        if topic is None:
            return
        frame = published.frame
        kind = frame.WhichOneof("frame")
        if kind == "delta":
            self._publish_delta(topic, published)
            return
        for group in topic.groups.values():
            if group.deltas:
                self.rollup.flush(group, everybody=True)
        outgoing = self._outgoing(topic, published, frame, kind)
        if outgoing is not None:
            topic.pending.append(outgoing)
            self._pending[topic] = None

    def _publish_delta(self, topic: SubscribedTopic, published: TopicFrame) -> None:
        """Queue a delta behind everything published so far; one that is known already is dropped."""
        count = published.deltas or 1
        self._counts.deltas_in += count
        if not topic.groups:
            return
        if topic.pending:
            self._flush(topic)
        delta = delta_range(published.frame.delta, count, topic.delta_bytes)
        if delta.index < topic.open_messages.get(delta.message_id, 0):
            return
        topic.open_messages[delta.message_id] = delta.next_index
        topic.delta_bytes += delta.size
        if topic.snapshots is not None:
            topic.snapshots.append(published.frame.delta, count)
        for group in topic.groups.values():
            if group.codec.streaming is not _COMPLETE:
                self.rollup.add(group, delta)

    def advance(self, number: int, position: Position) -> None:
        """Move a topic past an entry that is not published here: its only subscriber created it."""
        topic = self._topics.get(number)
        if topic is not None:
            topic.advance(position)

    def note_snapshot(self, connection: Connection, message: Message) -> None:
        """Continue an open message that was sent to one connection from where it stands."""
        connection.last_delta = message.id, message.next_index
        address = message.address.SerializeToString(deterministic=True)
        if connection.snapshots is not None:
            # A copy: the original keeps its whole batch alive.
            kept = Message(id=message.id, next_index=message.next_index)
            if connection.codec.streaming is not StreamingMode.DELTAS:
                kept.CopyFrom(message)
            connection.snapshots.append((address, kept))
        for topic in self.subscriptions_of(connection):
            if topic.head.address == address:
                self._note_snapshot(connection, topic, message)

    def _note_snapshot(self, connection: Connection, topic: SubscribedTopic, message: Message) -> None:
        """Note an open message that one subscriber has received; others may have less of it."""
        message_id, next_index = message.id, message.next_index
        if next_index > topic.open_messages.setdefault(message_id, next_index):
            self._subscriptions[connection][topic].skip(connection, message_id, next_index)
        if topic.snapshots is not None and connection.codec.streaming is not StreamingMode.DELTAS:
            topic.snapshots.put_newer(message)

    # Signals that live

    def _publish_live(self, topic: SubscribedTopic, published: TopicFrame) -> OutgoingFrame | None:
        """Keep a signal with a time to live, or forget one that ends; None if it does not live here."""
        signal, excluded = published.frame.signal, getattr(published, "except")
        if signal.end:
            ended = self.topic_signals.take(topic, signal.user, signal.name)
            if ended is None:
                return None
            excluded = ended.excluded
        else:
            self._end_signals(self.topic_signals.make_room())
            self.topic_signals.put(topic, published)
        return OutgoingFrame(published.frame, excluded, None, published.frame)

    def _send_signals(self, connection: Connection, topic: SubscribedTopic) -> None:
        """Send the signals that live in a topic to a connection that has just joined it."""
        for signal, frame in self.topic_signals.of_topic(topic):
            data = encode_frame(connection.codec, frame)
            if data and signal.excluded != connection.number:
                connection.pending.append(data)
                self._counts.deliveries += 1
                self._dirty.add(connection)

    def end_due_signals(self, now: float) -> None:
        """Send the ends of the signals whose time has passed."""
        self._end_signals(self.topic_signals.take_due(now))
        while self._pending:
            self._flush(next(iter(self._pending)))

    def _end_signals(self, signals: list[TopicSignal]) -> None:
        for signal in signals:
            frame, topic = expired(signal), signal.topic
            for group in topic.groups.values():
                if group.deltas:
                    self.rollup.flush(group, everybody=True)
            topic.pending.append(OutgoingFrame(frame, signal.excluded, None, frame))
            self._pending[topic] = None

    # Flushing

    def flush_for(self, connection: Connection) -> None:
        """Deliver what was published so far to a connection that is about to be sent something else."""
        for topic, group in self.subscriptions_of(connection).items():
            if group.deltas:
                self.rollup.flush_one(group, connection)
            elif topic.pending:
                self._flush(topic)

    def catch_up(self, connection: Connection) -> None:
        """Deliver the deltas that gathered for a connection while it had a backlog."""
        for group in self.subscriptions_of(connection).values():
            if group.is_behind(connection):
                self.rollup.flush_one(group, connection)

    def backlog_bytes(self, connection: Connection) -> int:
        """Return about how many bytes of deltas gathered for a connection with a backlog."""
        return sum([group.backlog_bytes(connection) for group in self.subscriptions_of(connection).values()])

    def end_batch(self, now: float) -> None:
        """Deliver everything published in the batch, except deltas whose window is open."""
        while self._pending:
            self._flush(next(iter(self._pending)))
        self.rollup.end_batch(now)

    def _flush(self, topic: SubscribedTopic) -> None:
        """Deliver a topic's pending frames, encoded once for each codec."""
        if topic not in self._pending:
            return
        del self._pending[topic]
        frames, topic.pending = topic.pending, []
        encoded: dict[Codec, list[bytes]] = {}
        for group in topic.groups.values():
            codec = group.codec
            if codec not in encoded:
                encoded[codec] = _encode_frames(codec, frames)
            if group.deliver(frames, encoded[codec], self._counts) or codec.reports_delivery:
                self._dirty |= group.subscribers

    # State of topics

    def _outgoing(
        self, topic: SubscribedTopic, published: TopicFrame, frame: ServerFrame, kind: str | None
    ) -> OutgoingFrame | None:
        """Return a published frame as it goes out, with the topic updated by it; None if nothing goes out."""
        excluded: int = getattr(published, "except")
        if kind == "message":
            message = frame.message
            if message.HasField("position"):
                topic.advance(message.position)
                if published.replayed:
                    excluded = _waiting_author(topic, message) or excluded
            return OutgoingFrame(frame, excluded, _note_message(topic, message), frame)
        if kind == "change":
            without_deltas = frame
            if topic.snapshots is not None:
                without_deltas = ServerFrame(change=topic.snapshots.complete(frame.change))
            _note_change(topic, frame.change)
            return OutgoingFrame(frame, excluded, None, without_deltas)
        if kind == "signal":
            signal = frame.signal
            if signal.ttl_ms or signal.end:
                return self._publish_live(topic, published)
        if kind == "read" and frame.read.HasField("at"):
            topic.advance(frame.read.at)
        return OutgoingFrame(frame, excluded, None, frame)


def _encode_frames(codec: Codec, frames: list[OutgoingFrame]) -> list[bytes]:
    if codec.streaming is StreamingMode.DELTAS:
        return [encode_frame(codec, one.frame) for one in frames]
    return [encode_frame(codec, one.without_deltas) for one in frames]


def _note_message(topic: SubscribedTopic, message: Message) -> DeltaIndex | None:
    """Return where the deltas of an open message continue for all subscribers; None if it is not open."""
    if message.state == MESSAGE_STATE_OPEN:
        message_id, next_index = message.id, message.next_index
        topic.open_messages[message_id] = next_index
        if topic.snapshots is not None:
            topic.snapshots.put(message)
        for group in topic.groups.values():
            group.unskip(message_id)
        return message_id, next_index
    if topic.open_messages:
        _note_end(topic, message.id)
    return None


def _note_change(topic: SubscribedTopic, change: Change) -> None:
    if change.HasField("position"):
        topic.advance(change.position)
    if change.kind in _LAST_CHANGES:
        _note_end(topic, change.message_id)


def _note_end(topic: SubscribedTopic, message_id: str) -> None:
    if topic.snapshots is not None:
        topic.snapshots.forget(message_id)
    if topic.open_messages.pop(message_id, None) is not None:
        for group in topic.groups.values():
            group.unskip(message_id)


def _waiting_author(topic: SubscribedTopic, message: Message) -> int:
    """Return the connection that waits for the `ack` of a replayed message, which follows; 0 if none does."""
    for connection in topic.subscribers() if message.client_id else ():
        waiting = connection.unanswered.get(message.client_id)
        if waiting is not None and waiting[0].HasField("message"):
            opened = connection.parse_opened()
            request = waiting[0].message
            home = opened.address.conversation
            conversation = request.conversation if request.HasField("conversation") else home
            is_author = opened.user == message.author.user and conversation == message.address.conversation
            if is_author and not opened.echo:
                return connection.number
    return 0
