"""Events that the application has not taken yet. Pure."""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

from trunkline.v1.address_pb2 import Address, Position, TopicPosition

from trunkline_client.cursor import topic_key
from trunkline_client.events import Event


class _QueuedEvent(NamedTuple):
    event: Event
    size: int
    #: Changes of positions to make once the event is taken; None forgets a position.
    positions: dict[bytes, TopicPosition | None]


class Inbox:
    """Events in the order received, and the positions up to which the application has taken them.

    `put` never refuses. While `is_full`, the caller must read nothing from the socket; so the bounds are
    exceeded by the content of one frame at most.
    """

    def __init__(self, max_items: int, max_bytes: int) -> None:
        self._max_items = max_items
        self._max_bytes = max_bytes
        self._bytes = 0
        self._events: deque[_QueuedEvent] = deque()
        self._positions: dict[bytes, TopicPosition] = {}

    def __repr__(self) -> str:
        return f"<Inbox {len(self)} of {self._max_items} events, {self._bytes} of {self._max_bytes} bytes>"

    def __len__(self) -> int:
        return len(self._events)

    @property
    def is_full(self) -> bool:
        """Whether to stop reading from the socket."""
        return len(self._events) >= self._max_items or self._bytes >= self._max_bytes

    @property
    def positions(self) -> list[TopicPosition]:
        """Positions from which to resume so that every event is taken once."""
        return list(self._positions.values())

    def put(self, event: Event, size: int) -> None:
        """Appends an event that took this many bytes on the wire."""
        self._events.append(_QueuedEvent(event, size, {}))
        self._bytes += size

    def set_position(self, address: Address, position: Position) -> None:
        """Sets a topic's position once all queued events are taken."""
        self._change(topic_key(address), TopicPosition(address=address, position=position))

    def forget(self, address: Address) -> None:
        """Removes a topic's position once all queued events are taken."""
        self._change(topic_key(address), None)

    def take(self) -> Event:
        """Removes and returns the next event. Raises IndexError if there is none."""
        event, size, positions = self._events.popleft()
        self._bytes -= size
        for key, position in positions.items():
            self._apply(key, position)
        return event

    def _change(self, key: bytes, position: TopicPosition | None) -> None:
        if self._events:
            self._events[-1].positions[key] = position
        else:
            self._apply(key, position)

    def _apply(self, key: bytes, position: TopicPosition | None) -> None:
        if position is None:
            self._positions.pop(key, None)
        else:
            self._positions[key] = position
