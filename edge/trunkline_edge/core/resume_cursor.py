"""Resume cursor of a client, for protocols that send clients the positions to resume from."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from trunkline.v1.address_pb2 import Address, Position, TopicPosition
from trunkline.v1.frame_pb2 import ServerFrame

from trunkline_edge.core.topic_head import TopicHead, format_position


class ResumeCursor:
    """Positions of one client in its initial topics, valid once everything pending is written.

    Topics are in the order tenant, agent, platform, conversation, user.
    """

    __slots__ = ("_heads", "_positions", "_sent")

    def __init__(self, positions: Iterable[TopicPosition]) -> None:
        known = sorted(positions, key=lambda each: _breadth(each.address))
        #: By serialized address; used until the client is subscribed.
        self._positions = {_key(each.address): (each.position.epoch, each.position.seq) for each in known}
        self._heads: list[TopicHead] = []
        self._sent: list[bytes] = []

    def subscribe(self, heads: Collection[TopicHead]) -> None:
        """Follow the heads of these topics from here on; topics joined later than `connected` are ignored."""
        known = {head.address: head for head in heads}
        self._heads = [known[address] for address in self._positions if address in known]

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
        epoch, seq = self._positions.get(key, ("", 0))
        # An open message is sent again even if its position is known.
        if key in self._positions and position.seq and (position.epoch != epoch or position.seq > seq):
            self._positions[key] = position.epoch, position.seq

    def take_update(self) -> list[bytes]:
        """Return the positions, one word each, or nothing if they are as returned last."""
        if self._heads:
            words = [head.word for head in self._heads]
        else:
            words = [format_position(*position) for position in self._positions.values()]
        if words == self._sent:
            return []
        self._sent = words
        return words


def _key(address: Address) -> bytes:
    return address.SerializeToString(deterministic=True)


def _breadth(address: Address) -> tuple[bool, bool, bool, bool]:
    """Sort key for the topics of one connection, broadest first."""
    is_users = address.WhichOneof("target") == "user"
    return is_users, address.HasField("conversation"), bool(address.platform), bool(address.agent)
