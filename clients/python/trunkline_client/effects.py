"""Effects that a client's session asks its runtime to carry out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from trunkline.v1.address_pb2 import Address, Position
from trunkline.v1.frame_pb2 import (
    AckFrame,
    CancelledFrame,
    ClientFrame,
    DeltaFrame,
    ErrorFrame,
    HistoryPageFrame,
    PongFrame,
    SubscribedFrame,
    UnsubscribedFrame,
)
from trunkline.v1.message_pb2 import Change

from trunkline_client.events import Event

SessionEvent: TypeAlias = Event | DeltaFrame | Change
"""An event as the session emits it; `ReplyTracker.track` turns it into events of the application."""

ResponseFrame: TypeAlias = (
    AckFrame | SubscribedFrame | UnsubscribedFrame | HistoryPageFrame | PongFrame | CancelledFrame
)
"""A frame that answers a request of the application."""


@dataclass(frozen=True, slots=True)
class Send:
    """Write this frame, after those before it."""

    frame: ClientFrame


@dataclass(frozen=True, slots=True)
class CompleteRequest:
    """Complete this request with its response."""

    id: str
    response: ResponseFrame


@dataclass(frozen=True, slots=True)
class FailRequest:
    """Fail this request."""

    id: str
    error: ErrorFrame


@dataclass(frozen=True, slots=True)
class Emit:
    """Pass this event on to the application."""

    event: SessionEvent


@dataclass(frozen=True, slots=True)
class SetPosition:
    """Record this position of a topic, once the application has taken every event emitted before."""

    address: Address
    position: Position


@dataclass(frozen=True, slots=True)
class ForgetTopic:
    """Forget the topic's position: its subscription has ended."""

    address: Address


@dataclass(frozen=True, slots=True)
class PauseSending:
    """Call `Session.resume_sending` after this many seconds, unless the connection is gone by then."""

    for_s: float


@dataclass(frozen=True, slots=True)
class SetTokenExpiry:
    """Refresh the token before this time, in seconds since 1970; None if it never expires."""

    at_s: float | None


@dataclass(frozen=True, slots=True)
class WarnTokenRejected:
    """Log that the edge rejected a new token; the current one is valid until it expires."""

    error: ErrorFrame


@dataclass(frozen=True, slots=True)
class DropConnection:
    """Abort the connection and make another one."""

    reason: str


ConnectionEffect: TypeAlias = Send | PauseSending | SetTokenExpiry | WarnTokenRejected | DropConnection
"""An effect on the current connection."""

Effect: TypeAlias = CompleteRequest | FailRequest | Emit | SetPosition | ForgetTopic | ConnectionEffect
