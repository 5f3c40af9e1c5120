"""How far this user has read, until the router has taken note. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from trunkline.v1.address_pb2 import Position
from trunkline.v1.frame_pb2 import ReadFrame


class UnconfirmedReads:
    """The last `read` of each topic that has not come back; iterates over what to send again.

    One that is refused stays, as its refusal does not name it: at most one a topic.
    """

    def __init__(self) -> None:
        self._frames: dict[bytes, ReadFrame] = {}

    def __iter__(self) -> Iterator[ReadFrame]:
        return iter(self._frames.values())

    def add(self, topic: bytes, frame: ReadFrame) -> None:
        """Keeps it, unless a later position of the same log is kept."""
        kept = self._frames.get(topic)
        if kept is None or not _reaches(kept.position, frame.position):
            self._frames[topic] = frame

    def confirmed(self, topic: bytes, position: Position) -> None:
        """The router knows that this user has read so far."""
        kept = self._frames.get(topic)
        if kept is not None and _reaches(position, kept.position):
            del self._frames[topic]


def _reaches(position: Position, other: Position) -> bool:
    return position.epoch == other.epoch and position.seq >= other.seq
