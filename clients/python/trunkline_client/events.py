"""Events and answers that a client passes to its application."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

from trunkline.v1.address_pb2 import Address, Position, TopicPosition
from trunkline.v1.frame_pb2 import DeliveredFrame, ErrorFrame, ReadFrame, ReplyStatusFrame, SignalFrame
from trunkline.v1.message_pb2 import Change, Message, MessageState, Part

from trunkline_client.accumulator import Accumulator


@dataclass(frozen=True, slots=True)
class MessagesLost:
    """Messages may have been missed: the edge could not resume from where the client was.

    Attributes:
        positions: Events that follow start after these. Read the history if the gap matters.
    """

    positions: tuple[TopicPosition, ...]


@dataclass(frozen=True, slots=True)
class GroupLeft:
    """A group's subscription ended: it could not be renewed after a reconnect, or a new token forbids it.

    Attributes:
        address: The group.
        code: Name of a `trunkline.v1.ErrorCode`.
        message: The reason, for people.
    """

    address: Address
    code: str
    message: str


@dataclass(frozen=True, slots=True)
class Delta:
    """An addition to an open message.

    Attributes:
        text: Text that was added; or empty.
        reasoning: Reasoning that was added; or empty.
        part: A part that was added; or None.
    """

    _whole: Accumulator
    text: str = ""
    reasoning: str = ""
    part: Part | None = None

    @property
    def message(self) -> Message:
        """The message as received so far, possibly beyond this delta. It grows: copy it to keep it."""
        return self._whole.message


@dataclass(frozen=True, slots=True)
class Snapshot:
    """An open message as it is now, replacing everything received of it before."""

    message: Message


@dataclass(frozen=True, slots=True)
class MessageChanged:
    """A message ended, was edited or was recalled.

    Attributes:
        change: The change, as it is in the log.
        message: The message after the change; None if it was recalled, or ended without having been received.
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
    | ReplyStatusFrame
    | ErrorFrame
    | MessagesLost
    | GroupLeft
)
"""An event of `Client.events`; an ErrorFrame rejects a frame without an id, such as a signal.

A SignalFrame with `end` set is the end of one that had a time to live; if the connection is lost, all of them
end, and those that still live come again.

A ReplyStatusFrame reports that an answer is late, because the agent has failed and is tried again, or that
it is tried no longer; that of a message sent by `ask` only sets `ReplyStream.is_late`.
"""


class Ack(NamedTuple):
    """Confirmation that a message or change is on disk."""

    message_id: str
    position: Position
    address: Address


class HistoryPage(NamedTuple):
    """A page of a log, oldest first; `more` if there is more in the direction that was read."""

    messages: list[Message]
    more: bool


class GroupJoined(NamedTuple):
    """Confirmation of a group's subscription.

    Messages after `position` follow; if `recovered`, so does everything missed since the client's position.
    """

    address: Address
    position: Position
    recovered: bool


class CancelResult(NamedTuple):
    """Effect of a cancel: the states in which the replies ended, by message id.

    `prevented` if there was no reply yet; one that is opened later ends CANCELLED at once.
    """

    replies: dict[str, MessageState.ValueType]
    prevented: bool
