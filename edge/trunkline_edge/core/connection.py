"""One client, as the edge knows it."""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING, Any

from trunkline.v1.edge_service_pb2 import ConnectionGranted
from trunkline.v1.frame_pb2 import ClientFrame, ClosingFrame
from trunkline.v1.message_pb2 import Message

from trunkline_edge.core.delivery_receipts import DeliveryReporter
from trunkline_edge.core.deltas import DeltaIndex
from trunkline_edge.core.rate_limits import ConnectionRateLimiter
from trunkline_edge.core.resume_cursor import ResumeCursor
from trunkline_edge.dialects.codec import Codec

if TYPE_CHECKING:
    from trunkline_edge.core.subscribers import SubscriberGroup
    from trunkline_edge.core.topic import SubscribedTopic


class ConnectionState(Enum):
    """How far a connection has come."""

    #: The router has not answered yet; nothing was written, not even the handshake's response.
    OPENING = 0
    OPEN = 1
    #: Its last frame is on its way; what still comes for it is dropped.
    CLOSING = 2


class Connection:
    """One client.

    `pending` holds WebSocket frames in order until the shell writes them, all with one call, at the
    end of the step that added them. `unanswered` holds the requests that the router has not answered,
    in the order sent, to be sent again on a new link.
    """

    __slots__ = (
        "bearer",
        "closing",
        "codec",
        "delivered",
        "early",
        "exempt_bytes",
        "goes_on",
        "held",
        "lags",
        "number",
        "opened",
        "pace",
        "pending",
        "proof",
        "rollup_ms",
        "silent_rounds",
        "snapshots",
        "socket",
        "standing",
        "state",
        "topics",
        "unanswered",
        "unanswered_bytes",
    )

    def __init__(
        self,
        number: int,
        socket: Any,
        codec: Codec,
        opened: bytes,
        rollup_ms: int,
        pace: ConnectionRateLimiter | None = None,
    ) -> None:
        self.number = number
        #: The shell's; the core only hands it back.
        self.socket = socket
        self.codec = codec
        #: The serialized ConnectionOpened, with which it is made known on each new link.
        self.opened = opened
        #: The window in which deltas are joined for it; 0 for none.
        self.rollup_ms = rollup_ms
        #: What it may send; None for what it likes.
        self.pace = pace
        #: The shell's: who the client is by its token; None where it has shown none.
        self.bearer: Any = None
        #: Another token's, while the router has not answered, and what the router was told of it.
        self.proof: tuple[Any, ConnectionGranted] | None = None
        self.state = ConnectionState.OPENING
        self.closing: ClosingFrame | None = None
        #: What it hears, and among whom.
        self.topics: dict[SubscribedTopic, SubscriberGroup] = {}
        self.pending: list[bytes] = []
        #: By id: the frame and its size.
        self.unanswered: dict[str, tuple[ClientFrame, int]] = {}
        self.unanswered_bytes = 0
        #: Nothing is read from the socket for now.
        self.held = False
        #: Sent right after a `resume` frame, before the router has answered, or together with what was too
        #: much; nothing more is read then, so it is no more than what one read of the socket brings.
        self.early: list[tuple[bytes, bool]] = []
        #: Open messages it was sent while arriving, each with its serialized address; without parts where
        #: its codec is told deltas. None while it does not arrive.
        self.snapshots: list[tuple[bytes, Message]] | None = None
        #: For codecs that mark it, from `connected` on.
        self.standing: ResumeCursor | None = None
        #: For codecs whose clients do not say it themselves.
        self.delivered = DeliveryReporter() if codec.reports_delivery else None
        #: Where the delta or open message that it was sent last ends.
        self.goes_on: DeltaIndex | None = None
        #: Set by the shell while something is buffered that the client has not taken: deltas gather.
        self.lags = False
        #: The shell's: bytes of a piece, large by itself, that the client is still taking.
        self.exempt_bytes = 0
        #: Rounds of heartbeats since bytes arrived, whereupon the shell sets it to 0.
        self.silent_rounds = 0

    @property
    def is_arriving(self) -> bool:
        """Connected or subscribed, and not joined yet: what was missed is still coming."""
        return self.snapshots is not None

    def marked(self, data: bytes) -> bytes:
        """What is to be written, with where the client then stands where that is marked and is news."""
        if self.standing is None or not data:
            return data
        marks = self.standing.news(self.topics)
        return self.codec.with_cursor(data, marks) if marks else data

    def __repr__(self) -> str:
        return f"<Connection {self.number} {self.state.name}, {len(self.topics)} topics>"
