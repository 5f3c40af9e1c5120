"""What a client tells its application, and what its session asks of its shell."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

from trunkline.v1.address_pb2 import Address, Position, TopicPosition
from trunkline.v1.frame_pb2 import (
    AckFrame,
    CancelledFrame,
    ClientFrame,
    DeliveredFrame,
    DeltaFrame,
    ErrorFrame,
    HistoryPageFrame,
    PongFrame,
    ReadFrame,
    SignalFrame,
    SubscribedFrame,
    UnsubscribedFrame,
)
from trunkline.v1.message_pb2 import Change, Message, MessageState, Part

from trunkline_client.accumulator import Accumulator


@dataclass(frozen=True, slots=True)
class MessagesLost:
    """Messages may have been missed: what was asked for on reconnecting could not be had.

    What follows begins after `positions`. Read `history` where the gap matters.
    """

    positions: tuple[TopicPosition, ...]


@dataclass(frozen=True, slots=True)
class GroupLeft:
    """A group that had been joined is heard no more.

    It could not be joined again after reconnecting, or another token does not allow it.
    """

    address: Address
    code: str
    message: str


@dataclass(frozen=True, slots=True)
class Delta:
    """An addition to an open message: text, reasoning or a part."""

    whole: Accumulator
    text: str = ""
    reasoning: str = ""
    part: Part | None = None

    @property
    def message(self) -> Message:
        """The message as received so far, which may be ahead of this. It grows: copy what is to be kept."""
        return self.whole.message


@dataclass(frozen=True, slots=True)
class Snapshot:
    """An open message as it is now, in the place of what was told of it."""

    message: Message


@dataclass(frozen=True, slots=True)
class MessageChanged:
    """A message has ended, or was edited or recalled.

    `message` is the message as it is now; None where it was recalled, or has ended unseen.
    """

    change: Change
    message: Message | None


Event: TypeAlias = (
    Message
    | Delta
    | Snapshot
    | MessageChanged
    | SignalFrame
    | ReadFrame
    | DeliveredFrame
    | ErrorFrame
    | MessagesLost
    | GroupLeft
)
"""What `Client.events` yields; an ErrorFrame is the refusal of what has no id, such as a signal."""

SessionEvent: TypeAlias = Event | DeltaFrame | Change
"""What a session tells."""


class Ack(NamedTuple):
    """A message is on disk."""

    message_id: str
    position: Position
    address: Address


class HistoryPage(NamedTuple):
    """A page of a log, oldest first; `more` in the direction that was asked for."""

    messages: list[Message]
    more: bool


class GroupJoined(NamedTuple):
    """A group is joined; messages after `position` follow, and with `recovered` all that was missed."""

    address: Address
    position: Position
    recovered: bool


class CancelResult(NamedTuple):
    """What a cancel has done: how the replies have ended, by their ids.

    `prevented`: there was none yet, and there will be none but one that ends CANCELLED at once.
    """

    replies: dict[str, MessageState.ValueType]
    prevented: bool


ResponseFrame: TypeAlias = (
    AckFrame | SubscribedFrame | UnsubscribedFrame | HistoryPageFrame | PongFrame | CancelledFrame
)


@dataclass(frozen=True, slots=True)
class Send:
    """Write this frame, after those before it."""

    frame: ClientFrame


@dataclass(frozen=True, slots=True)
class CompleteRequest:
    """Complete this request."""

    id: str
    answer: ResponseFrame


@dataclass(frozen=True, slots=True)
class FailRequest:
    """Fail this request."""

    id: str
    error: ErrorFrame


@dataclass(frozen=True, slots=True)
class Emit:
    """Pass this on to the application."""

    event: SessionEvent


@dataclass(frozen=True, slots=True)
class SetPosition:
    """Once the application has taken all that was told before, it stands here in this topic."""

    address: Address
    position: Position


@dataclass(frozen=True, slots=True)
class ForgetTopic:
    """This topic is heard no more; its position means nothing now."""

    address: Address


@dataclass(frozen=True, slots=True)
class PauseSending:
    """Call `Session.go_on` after so many seconds, unless the socket is gone by then."""

    for_s: float


@dataclass(frozen=True, slots=True)
class SetTokenExpiry:
    """The token expires then, in seconds since 1970; never where it is None."""

    at_s: float | None


@dataclass(frozen=True, slots=True)
class WarnTokenRejected:
    """Another token was refused; the present one is good until it expires."""

    error: ErrorFrame


@dataclass(frozen=True, slots=True)
class DropConnection:
    """Break the connection and make another."""

    why: str


OnConnection: TypeAlias = Send | PauseSending | SetTokenExpiry | WarnTokenRejected | DropConnection
"""What is about the present connection."""

Effect: TypeAlias = CompleteRequest | FailRequest | Emit | SetPosition | ForgetTopic | OnConnection
