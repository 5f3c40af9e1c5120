"""State of one client connection."""

from __future__ import annotations

from enum import Enum
from sys import intern
from typing import Protocol

from trunkline.v1.edge_service_pb2 import ConnectionGranted, ConnectionOpened
from trunkline.v1.frame_pb2 import ClientFrame
from trunkline.v1.message_pb2 import Message

from trunkline_edge.core.delivery_receipts import DeliveryReporter
from trunkline_edge.core.deltas import DeltaIndex
from trunkline_edge.core.rate_limits import ConnectionRateLimiter
from trunkline_edge.core.resume_cursor import ResumeCursor
from trunkline_edge.dialects.codec import Codec


class ConnectionState(Enum):
    """Lifecycle of a connection."""

    #: The router has not answered. Nothing was written, not even the response to the handshake.
    OPENING = 0
    OPEN = 1
    #: The closing frame is pending or written; frames for the connection are dropped.
    CLOSING = 2


class Authenticated(Protocol):
    """A verified token, as far as the core depends on it."""

    @property
    def key(self) -> str:
        """Identity of the key that verified the token."""

    @property
    def expires_at_s(self) -> float | None:
        """Wall-clock time of expiry; None if the token does not expire."""


class Connection:
    """One client.

    `pending` holds encoded frames in order until the end of the step that added them; all are written with
    one call. `unanswered` holds the requests that the router has not answered, in the order sent; they are
    sent again on a new link.
    """

    __slots__ = (
        "buffered_input",
        "codec",
        "connection_id",
        "delivery_reporter",
        "has_backlog",
        "is_verifying",
        "last_delta",
        "missed_heartbeats",
        "number",
        "oversize_bytes",
        "pending",
        "pending_token",
        "principal",
        "rate_limiter",
        "reading_paused",
        "registration_bytes",
        "resume_cursor",
        "rollup_ms",
        "snapshots",
        "state",
        "tenant",
        "unanswered",
        "unanswered_bytes",
    )

    def __init__(
        self,
        opened: ConnectionOpened,
        codec: Codec,
        rollup_ms: int,
        rate_limiter: ConnectionRateLimiter | None = None,
        principal: Authenticated | None = None,
    ) -> None:
        """`opened.connection` is the number; `rate_limiter` None sets no limit."""
        self.number: int = opened.connection
        self.connection_id = opened.connection_id
        self.tenant = intern(opened.address.tenant)
        #: The serialized ConnectionOpened, sent on each new link.
        self.registration_bytes = opened.SerializeToString()
        self.codec = codec
        #: Window in which deltas are joined; 0 for none.
        self.rollup_ms = rollup_ms
        self.rate_limiter = rate_limiter
        #: None if the client connected without a token.
        self.principal = principal
        #: A new token is being verified.
        self.is_verifying = False
        #: A new token with its grants, until the router answers.
        self.pending_token: tuple[Authenticated, ConnectionGranted] | None = None
        self.state = ConnectionState.OPENING
        self.pending: list[bytes] = []
        #: Request and its size, by id.
        self.unanswered: dict[str, tuple[ClientFrame, int]] = {}
        self.unanswered_bytes = 0
        self.reading_paused = False
        #: Frames read before the router answered, or in the same read as a frame over the rate limit.
        #: Reading is paused meanwhile, so one read of the socket bounds them.
        self.buffered_input: list[tuple[bytes, bool]] = []
        #: Open messages replayed before the connection is subscribed, each with its serialized address, and
        #: without parts if the codec streams deltas. None while no replay is under way.
        self.snapshots: list[tuple[bytes, Message]] | None = None
        #: Set with `connected` if the codec sends cursors.
        self.resume_cursor: ResumeCursor | None = None
        #: Set if the codec's clients send no `delivered` frames.
        self.delivery_reporter = DeliveryReporter() if codec.reports_delivery else None
        #: End of the delta or open message that was sent last.
        self.last_delta: DeltaIndex | None = None
        #: The socket buffers bytes that the client has not taken; deltas gather meanwhile.
        self.has_backlog = False
        #: See ClientBackpressure.
        self.oversize_bytes = 0
        #: Heartbeats since bytes were last received.
        self.missed_heartbeats = 0

    @property
    def is_replaying(self) -> bool:
        """The connection has connected or subscribed, and its missed entries are still arriving."""
        return self.snapshots is not None

    def parse_opened(self) -> ConnectionOpened:
        """Return the ConnectionOpened, parsed; not for the hot path."""
        return ConnectionOpened.FromString(self.registration_bytes)

    def with_cursor(self, data: bytes) -> bytes:
        """Return `data`, plus a resume cursor if the codec uses one and it moved."""
        if self.resume_cursor is None or not data:
            return data
        tokens = self.resume_cursor.take_update()
        return self.codec.with_cursor(data, tokens) if tokens else data

    def __repr__(self) -> str:
        return f"<Connection {self.number} {self.state.name}>"
