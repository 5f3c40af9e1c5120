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

from edge.core.bounds import Counts
from edge.core.connection import Connection, State, Topic


class Fanout:
    """The topics that this edge's connections hear.

    What is published gathers in each topic's run until the end of the batch, or until something else
    is to be sent to a listener, which must come after it. Connections that got something are put into
    `dirty`.
    """

    def __init__(self, connections: dict[int, Connection], counts: Counts, dirty: set[Connection]) -> None:
        self._connections = connections
        self._counts = counts
        self._dirty = dirty
        self._topics: dict[int, Topic] = {}
        #: Topics of the last link, by address, until the new one gives them numbers.
        self._orphans: dict[bytes, Topic] = {}
        self._running: dict[Topic, None] = {}

    def link_lost(self) -> None:
        """The numbers of the topics mean nothing any longer."""
        self._orphans |= {topic.address: topic for topic in self._topics.values()}
        self._topics.clear()

    def known(self) -> Iterator[Topic]:
        """The topics to make known on a new link: those that somebody hears."""
        self._orphans = {address: topic for address, topic in self._orphans.items() if topic.listeners}
        yield from self._orphans.values()

    def topic(self, opened: TopicOpened) -> None:
        """The router gives a topic a number."""
        address = opened.address.SerializeToString(deterministic=True)
        topic = self._orphans.pop(address, None)
        if topic is None:
            topic = Topic(opened.topic, address, opened.position.epoch, opened.position.seq)
        topic.number = opened.topic
        self._topics[topic.number] = topic

    def forget(self, number: int) -> None:
        """Nobody hears the topic any longer."""
        self._topics.pop(number, None)

    def join(self, join: TopicsJoined) -> None:
        """A connection hears topics from here on."""
        connection = self._connections.get(join.connection)
        if connection is None or connection.state is State.CLOSING:
            return
        connection.is_arriving = False
        for number in join.topics:
            topic = self._topics[number]
            self._flush(topic)
            if connection not in topic.listeners:
                topic.listeners.add(connection)
                connection.topics.append(topic)

    def leave(self, leave: TopicsLeft) -> None:
        """A connection does not hear topics any longer."""
        connection = self._connections.get(leave.connection)
        if connection is None:
            return
        for number in leave.topics:
            topic = self._topics[number]
            self._flush(topic)
            topic.listeners.discard(connection)
            if topic in connection.topics:
                connection.topics.remove(topic)

    def deafen(self, connection: Connection) -> None:
        """A connection hears nothing any longer."""
        for topic in connection.topics:
            topic.listeners.discard(connection)
        connection.topics.clear()

    def publish(self, publish: TopicFrame) -> None:
        """A frame for all that hear a topic."""
        topic = self._topics.get(publish.topic)
        if topic is None:
            return
        frame = publish.frame
        excepted: int = getattr(publish, "except")
        if frame.HasField("message") and frame.message.HasField("position"):
            position = frame.message.position
            topic.epoch, topic.seq = position.epoch, position.seq
            if publish.replayed:
                excepted = _author_waiting(topic, publish) or excepted
        topic.run.append((frame, excepted))
        self._running[topic] = None

    def advance(self, number: int, position: Position) -> None:
        """The topic's only listener wrote this message itself; it is not published here."""
        topic = self._topics.get(number)
        if topic is not None:
            topic.epoch, topic.seq = position.epoch, position.seq

    def settle(self, connection: Connection) -> None:
        """What was published before this point comes before what is sent to the connection next."""
        if not self._running:
            return
        for topic in connection.topics:
            if topic in self._running:
                self._flush(topic)

    def settle_all(self) -> None:
        """The batch ends: everybody gets what was published."""
        while self._running:
            self._flush(next(iter(self._running)))

    def _flush(self, topic: Topic) -> None:
        if topic in self._running:
            del self._running[topic]
            count = len(topic.run)
            listeners = topic.flush()
            self._counts.deliveries += count * len(listeners)
            self._dirty |= listeners


def _author_waiting(topic: Topic, publish: TopicFrame) -> int:
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
