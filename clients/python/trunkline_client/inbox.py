"""What has been received and not yet been taken by the application. Pure."""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

from trunkline.v1.address_pb2 import Address, Position, TopicPosition

from trunkline_client.cursor import topic_key
from trunkline_client.events import Event


class _Entry(NamedTuple):
    event: Event
    size: int
    #: What to do to the positions once this is taken; None forgets one.
    marks: dict[bytes, TopicPosition | None]


class Inbox:
    """Events in the order received, and the positions up to which the application has taken them.

    `put` never refuses. Once `full`, whoever puts must read no further from the socket until it is
    not; so the bounds are exceeded by what one frame brings at most.
    """

    def __init__(self, max_items: int, max_bytes: int) -> None:
        self._max_items = max_items
        self._max_bytes = max_bytes
        self._bytes = 0
        self._entries: deque[_Entry] = deque()
        self._positions: dict[bytes, TopicPosition] = {}

    def __repr__(self) -> str:
        return f"<Inbox {len(self)} of {self._max_items} events, {self._bytes} of {self._max_bytes} bytes>"

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def full(self) -> bool:
        """Whether to stop reading."""
        return len(self._entries) >= self._max_items or self._bytes >= self._max_bytes

    @property
    def positions(self) -> list[TopicPosition]:
        """Where to resume so that nothing is missed that was not taken."""
        return list(self._positions.values())

    def put(self, event: Event, size: int) -> None:
        """Appends an event that took so many bytes on the wire."""
        self._entries.append(_Entry(event, size, {}))
        self._bytes += size

    def mark(self, address: Address, position: Position) -> None:
        """Sets a topic's position, to be seen once all that is waiting has been taken."""
        self._change(topic_key(address), TopicPosition(address=address, position=position))

    def forget(self, address: Address) -> None:
        """Removes a topic's position, once all that is waiting has been taken."""
        self._change(topic_key(address), None)

    def take(self) -> Event:
        """The next event. Raises IndexError where there is none."""
        event, size, marks = self._entries.popleft()
        self._bytes -= size
        for key, position in marks.items():
            self._apply(key, position)
        return event

    def _change(self, key: bytes, position: TopicPosition | None) -> None:
        if self._entries:
            self._entries[-1].marks[key] = position
        else:
            self._apply(key, position)

    def _apply(self, key: bytes, position: TopicPosition | None) -> None:
        if position is None:
            self._positions.pop(key, None)
        else:
            self._positions[key] = position
