"""Topics that a client is subscribed to, with their cursors. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from trunkline.v1.address_pb2 import Address, Conversation, Position, TopicPosition
from trunkline.v1.frame_pb2 import ClientFrame, MessageFrame, ReadFrame, UnsubscribedFrame

from trunkline_client.cursor import Cursor, topic_key

#: Stands for whichever topic the message to be changed is in.
ANY_TOPIC = b""


class ClientSubscriptions:
    """Cursors of the client's topics, and the groups that it has joined.

    A connection subscribes to the client's own conversation and to broader topics by itself; groups are
    joined, and joined again on each new connection.
    """

    def __init__(self, own: Address, resume: Iterable[TopicPosition] = ()) -> None:
        self.own = own
        self._topics: dict[bytes, Address] = {}
        self._cursors: dict[bytes, Cursor] = {}
        self._groups: dict[bytes, Conversation] = {}
        for each in resume:
            self.place(each.address, each.position)

    def __len__(self) -> int:
        return len(self._cursors)

    def __iter__(self) -> Iterator[tuple[bytes, Cursor]]:
        return iter(self._cursors.items())

    @property
    def groups(self) -> list[Conversation]:
        """The joined groups."""
        return list(self._groups.values())

    def cursor(self, address: Address) -> Cursor | None:
        """The topic's cursor; None for a topic without a position."""
        return self._cursors.get(topic_key(address))

    def place(self, address: Address, position: Position) -> None:
        """Sets the topic's position, unless its cursor is there already."""
        key = topic_key(address)
        cursor = self._cursors.get(key)
        if cursor is None or not cursor.is_at(position):
            self._topics[key] = address
            self._cursors[key] = Cursor(position)

    def add_group(self, address: Address) -> None:
        """Records that a group is joined."""
        self._groups[topic_key(address)] = address.conversation

    def forget(self, address: Address) -> None:
        """Forgets a topic, and the group if it is one."""
        key = topic_key(address)
        for each in (self._topics, self._cursors, self._groups):
            each.pop(key, None)

    def forget_all_but_groups(self) -> list[Address]:
        """Forgets the topics that are no groups; returns them."""
        forgotten = [each for each in self._topics.values() if not self._is_group(each)]
        for address in forgotten:
            self.forget(address)
        return forgotten

    def resume_positions(self) -> list[TopicPosition]:
        """Positions to resume a connection from; groups have theirs in the frames that join them."""
        return [
            TopicPosition(address=self._topics[key], position=cursor.position)
            for key, cursor in self._cursors.items()
            if not self._is_group(self._topics[key])
        ]

    def topic_of(self, conversation: Conversation) -> Address:
        """The topic of a conversation of the client's agent and platform."""
        own = self.own
        return Address(tenant=own.tenant, agent=own.agent, platform=own.platform, conversation=conversation)

    def completed_unsubscribes(self, pending: Iterable[tuple[str, ClientFrame]]) -> list[UnsubscribedFrame]:
        """The answers to pending requests to leave groups, on a new connection.

        A new connection has joined no group, so leaving one is done unless joining it is pending too.
        """
        requests = list(pending)
        joining = {
            topic_key(self.topic_of(request.subscribe.conversation))
            for _, request in requests
            if request.HasField("subscribe")
        }
        left = [
            UnsubscribedFrame(id=request_id, address=self.topic_of(request.unsubscribe.conversation))
            for request_id, request in requests
            if request.HasField("unsubscribe")
        ]
        return [frame for frame in left if topic_key(frame.address) not in joining]

    # Topics of frames.

    def entry_topic(self, frame: ClientFrame) -> bytes | None:
        """The topic whose log gets an entry by a request; ANY_TOPIC if only the router knows it, or None."""
        if frame.HasField("message"):
            return self.message_topic(frame.message)
        return ANY_TOPIC if frame.HasField("edit") or frame.HasField("recall") else None

    def message_topic(self, frame: MessageFrame) -> bytes:
        """The topic of a message."""
        return self._topic_key(frame.conversation if frame.HasField("conversation") else None)

    def read_topic(self, frame: ReadFrame) -> bytes:
        """The topic of a read position."""
        if frame.HasField("address"):
            return topic_key(frame.address)
        return self._topic_key(frame.conversation if frame.HasField("conversation") else None)

    def _topic_key(self, conversation: Conversation | None) -> bytes:
        return topic_key(self.own if conversation is None else self.topic_of(conversation))

    def _is_group(self, address: Address) -> bool:
        return address.HasField("conversation") and address.conversation != self.own.conversation
