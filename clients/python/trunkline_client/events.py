"""What a client tells its application, and what its session asks of its shell."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

from trunkline.v1.address_pb2 import Address, Position, TopicPosition
from trunkline.v1.frame_pb2 import (
    AckFrame,
    ClientFrame,
    ErrorFrame,
    HistoryPageFrame,
    PongFrame,
    ReadFrame,
    SignalFrame,
    SubscribedFrame,
    UnsubscribedFrame,
)
from trunkline.v1.message_pb2 import Message


@dataclass(frozen=True, slots=True)
class Lost:
    """Messages may have been missed: what was asked for on reconnecting could not be had.

    What follows begins after `positions`. Read `history` where the gap matters.
    """

    positions: tuple[TopicPosition, ...]


@dataclass(frozen=True, slots=True)
class Left:
    """A group that had been joined could not be joined again after reconnecting; it is heard no more."""

    address: Address
    code: str
    message: str


Event: TypeAlias = Message | SignalFrame | ReadFrame | ErrorFrame | Lost | Left
"""What `Client.events` yields; an ErrorFrame is the refusal of a signal or a read."""


class Ack(NamedTuple):
    """A message is on disk."""

    message_id: str
    position: Position
    address: Address


class HistoryPage(NamedTuple):
    """A page of a log, oldest first; `more` in the direction that was asked for."""

    messages: list[Message]
    more: bool


class Joined(NamedTuple):
    """A group is joined; messages after `position` follow, and with `recovered` all that was missed."""

    address: Address
    position: Position
    recovered: bool


Answered: TypeAlias = AckFrame | SubscribedFrame | UnsubscribedFrame | HistoryPageFrame | PongFrame


@dataclass(frozen=True, slots=True)
class Send:
    """Write this frame, after those before it."""

    frame: ClientFrame


@dataclass(frozen=True, slots=True)
class Answer:
    """Complete this request."""

    id: str
    answer: Answered


@dataclass(frozen=True, slots=True)
class Refuse:
    """Fail this request."""

    id: str
    error: ErrorFrame


@dataclass(frozen=True, slots=True)
class Tell:
    """Queue this event for the application."""

    event: Event


@dataclass(frozen=True, slots=True)
class Mark:
    """Once the application has taken all that was told before, it stands here in this topic."""

    address: Address
    position: Position


@dataclass(frozen=True, slots=True)
class Forget:
    """This topic is heard no more; its position means nothing now."""

    address: Address


@dataclass(frozen=True, slots=True)
class Drop:
    """Break the connection and make another."""

    why: str


Effect: TypeAlias = Send | Answer | Refuse | Tell | Mark | Forget | Drop
