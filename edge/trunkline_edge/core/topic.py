"""A topic with subscribers on this edge, and a signal that lives in it."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain

from trunkline.v1.address_pb2 import Position
from trunkline.v1.frame_pb2 import SignalFrame

from trunkline_edge.core.connection import Connection
from trunkline_edge.core.stream_snapshots import StreamSnapshots
from trunkline_edge.core.subscribers import OutgoingFrame, SubscriberGroup
from trunkline_edge.core.topic_head import TopicHead
from trunkline_edge.dialects.codec import Codec, StreamingMode


class TopicSignal:
    """A signal of one user that lives in a topic."""

    __slots__ = ("deadline", "excluded", "frame", "sender", "size", "topic")

    def __init__(self, topic: SubscribedTopic) -> None:
        self.topic = topic
        self.frame = SignalFrame()
        self.size = 0
        self.deadline = 0.0
        #: Number of the one connection that has sent it and was never sent it; 0 for none.
        self.excluded = 0
        #: Number of the connection of this edge that has sent it last; 0 for none.
        self.sender = 0


class SubscribedTopic:
    """A topic that connections of this edge are subscribed to.

    `pending` gathers frames that are ready together; they are encoded once per codec, joined, and delivered
    as one piece. Deltas wait in each group. Never do both hold something: a frame first flushes the deltas,
    and a delta the frames.
    """

    __slots__ = (
        "delta_bytes",
        "groups",
        "head",
        "number",
        "open_messages",
        "pending",
        "signals",
        "snapshots",
    )

    def __init__(self, number: int, head: TopicHead) -> None:
        #: On the current link.
        self.number = number
        self.head = head
        #: By codec and rollup window; none is empty.
        self.groups: dict[tuple[Codec, int], SubscriberGroup] = {}
        self.pending: list[OutgoingFrame] = []
        #: Index of the next delta by open message.
        self.open_messages: dict[str, int] = {}
        #: None while every subscriber's codec streams deltas.
        self.snapshots: StreamSnapshots | None = None
        #: Signals that live here, by user and name; see TopicSignals. None until the first one.
        self.signals: dict[tuple[str, str], TopicSignal] | None = None
        #: Total of all deltas received.
        self.delta_bytes = 0

    def advance(self, position: Position) -> None:
        """Move the head to a position; replayed ones do not move it back."""
        if self.head.advance(position):
            # The log was recreated: messages that were open in the old one never end.
            self._forget_open_messages()

    def _forget_open_messages(self) -> None:
        self.open_messages.clear()
        if self.snapshots is not None:
            self.snapshots.clear()
        for group in self.groups.values():
            group.skips.clear()

    def subscribers(self) -> Iterator[Connection]:
        """Iterate over all subscribers."""
        return chain.from_iterable(group.subscribers for group in self.groups.values())

    def subscribe(self, connection: Connection) -> SubscriberGroup:
        """Add a connection; return its group."""
        key = connection.codec, connection.rollup_ms
        group = self.groups.get(key)
        if group is None:
            snapshots = None
            if connection.codec.streaming is not StreamingMode.DELTAS:
                snapshots = self.snapshots = self.snapshots or StreamSnapshots()
            group = self.groups[key] = SubscriberGroup(*key, snapshots)
        group.add(connection)
        return group

    def move(
        self, connection: Connection, before: SubscriberGroup
    ) -> tuple[SubscriberGroup, SubscriberGroup | None]:
        """Move a subscriber whose codec changed; nothing may wait for it.

        Return its new group, and the old one if that is empty and dropped.
        """
        skips = before.skips.pop(connection, None)
        group = self.subscribe(connection)
        if skips is not None:
            group.skips[connection] = skips
        return group, self.unsubscribe(connection, before)

    def unsubscribe(self, connection: Connection, group: SubscriberGroup) -> SubscriberGroup | None:
        """Remove a subscriber. Return its group if that is empty and dropped."""
        group.remove(connection)
        if group.subscribers:
            return None
        del self.groups[group.codec, group.rollup_ms]
        if group.snapshots is not None and all(other.snapshots is None for other in self.groups.values()):
            self.snapshots = None
        if not self.groups:
            # The next subscriber begins with snapshots of all open messages.
            self._forget_open_messages()
        return group

    def __repr__(self) -> str:
        return f"<SubscribedTopic {self.number}, {len(self.groups)} groups>"
