"""Where a client stands in its topics, for those whose protocol has them told what to go on from."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import TYPE_CHECKING

from trunkline.v1.address_pb2 import Address, Position, TopicPosition
from trunkline.v1.frame_pb2 import ServerFrame

if TYPE_CHECKING:
    from trunkline_edge.core.topic import SubscribedTopic


def mark_of(epoch: str, seq: int) -> bytes:
    """A position in one word."""
    return b"%b.%d" % (epoch.encode(), seq)


class ResumeCursor:
    """How far one client has come in the topics that it hears from the start, once all pending is written.

    Topics are in the order tenant, agent, platform, conversation, user.
    """

    __slots__ = ("_entered", "_marks", "_topics")

    def __init__(self, positions: Iterable[TopicPosition]) -> None:
        known = sorted(positions, key=lambda each: _breadth(each.address))
        #: Until it has joined its topics: where it is in each, by serialized address.
        self._entered = {_key(each.address): (each.position.epoch, each.position.seq) for each in known}
        self._topics: list[SubscribedTopic] = []
        #: As last told.
        self._marks: list[bytes] = []

    def passed(self, frame: ServerFrame) -> None:
        """The client, which has not joined its topics yet, is told an entry that it missed."""
        kind = frame.WhichOneof("frame")
        if kind == "message":
            self._passed(frame.message.address, frame.message.position)
        elif kind == "change":
            self._passed(frame.change.address, frame.change.position)
        elif kind == "read":
            self._passed(frame.read.address, frame.read.at)

    def _passed(self, address: Address, position: Position) -> None:
        key = _key(address)
        epoch, seq = self._entered.get(key, ("", 0))
        # A message that is open is told again also where it was known.
        if key in self._entered and position.seq and (position.epoch != epoch or position.seq > seq):
            self._entered[key] = position.epoch, position.seq

    def news(self, topics: Collection[SubscribedTopic]) -> list[bytes]:
        """Where it stands, with the topics that it has joined; nothing where that is as it was last told."""
        if not topics:
            marks = [mark_of(*entered) for entered in self._entered.values()]
        else:
            if not self._topics:
                known = {topic.address: topic for topic in topics}
                self._topics = [known[address] for address in self._entered if address in known]
            marks = [topic.mark or topic.marked() for topic in self._topics]
        if marks == self._marks:
            return []
        self._marks = marks
        return marks


def _key(address: Address) -> bytes:
    return address.SerializeToString(deterministic=True)


def _breadth(address: Address) -> tuple[bool, bool, bool, bool]:
    """Sorts the topics of one connection, broadest first."""
    is_users = address.WhichOneof("target") == "user"
    return is_users, address.HasField("conversation"), bool(address.platform), bool(address.agent)
