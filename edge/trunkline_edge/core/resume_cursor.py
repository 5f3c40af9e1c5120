"""Resume cursor of a client, for protocols that send clients the positions to resume from."""

from __future__ import annotations

from collections.abc import Iterable

from trunkline.v1.address_pb2 import Address, Position, TopicPosition
from trunkline.v1.frame_pb2 import ServerFrame

from trunkline_edge.core.topic_head import TopicHead


class ResumeCursor:
    """Positions of one client in its initial topics, valid once everything pending is written.

    Topics are in the order tenant, agent, platform, conversation, user. The cursor names all of them: a topic
    that the client is not subscribed to, or has left, keeps the last position that it received.
    """

    __slots__ = ("_heads", "_own", "_sent")

    def __init__(self, positions: Iterable[TopicPosition]) -> None:
        known = sorted(positions, key=lambda each: _breadth(each.address))
        heads = [TopicHead(_key(each.address), each.position.epoch, each.position.seq) for each in known]
        #: By address: the topic's own head while the client is subscribed, otherwise one of this cursor.
        self._heads = {head.address: head for head in heads}
        #: Addresses of the topics that the client is not subscribed to.
        self._own = set(self._heads)
        self._sent: list[bytes] = []

    def subscribe(self, heads: Iterable[TopicHead]) -> None:
        """Follow the heads of these topics from here on; topics joined later than `connected` are ignored."""
        for head in heads:
            if head.address in self._heads:
                self._heads[head.address] = head
                self._own.discard(head.address)

    def unsubscribe(self, head: TopicHead) -> None:
        """Stop following a topic; the client has received everything up to its head."""
        if self._heads.get(head.address) is head:
            self._heads[head.address] = TopicHead(head.address, head.epoch, head.seq)
            self._own.add(head.address)

    def replay(self, frame: ServerFrame) -> None:
        """Advance past a missed entry that is sent to the client before it is subscribed."""
        kind = frame.WhichOneof("frame")
        if kind == "message":
            self._advance(frame.message.address, frame.message.position)
        elif kind == "change":
            self._advance(frame.change.address, frame.change.position)
        elif kind == "read":
            self._advance(frame.read.address, frame.read.at)

    def _advance(self, address: Address, position: Position) -> None:
        key = _key(address)
        if key in self._own and position.seq:
            # An open message is sent again even if its position is known; that does not move the head back.
            self._heads[key].advance(position)

    def take_update(self) -> list[bytes]:
        """Return the positions, one cursor token each, or nothing if they are as returned last."""
        tokens = [head.cursor_token for head in self._heads.values()]
        if tokens == self._sent:
            return []
        self._sent = tokens
        return tokens


def _key(address: Address) -> bytes:
    return address.SerializeToString(deterministic=True)


def _breadth(address: Address) -> tuple[bool, bool, bool, bool]:
    """Sort key for the topics of one connection, broadest first."""
    is_users = address.WhichOneof("target") == "user"
    return is_users, address.HasField("conversation"), bool(address.platform), bool(address.agent)
