"""Read positions that the router has not confirmed yet. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from trunkline.v1.address_pb2 import Position
from trunkline.v1.frame_pb2 import ReadFrame


class UnconfirmedReads:
    """The latest unconfirmed `read` frame of each topic; iterates over the frames to send again.

    At most one per topic. A rejected frame stays, because the rejection does not name it.
    """

    def __init__(self) -> None:
        self._frames: dict[bytes, ReadFrame] = {}

    def __iter__(self) -> Iterator[ReadFrame]:
        return iter(self._frames.values())

    def add(self, topic: bytes, frame: ReadFrame) -> None:
        """Keeps a frame, unless a later position of the same log is kept."""
        kept = self._frames.get(topic)
        if kept is None or not _reaches(kept.position, frame.position):
            self._frames[topic] = frame

    def confirm(self, topic: bytes, position: Position) -> None:
        """Removes the topic's frame if the router confirmed its position or a later one."""
        kept = self._frames.get(topic)
        if kept is not None and _reaches(position, kept.position):
            del self._frames[topic]


def _reaches(position: Position, other: Position) -> bool:
    return position.epoch == other.epoch and position.seq >= other.seq
