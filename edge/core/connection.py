"""One client, and one topic, as the edge knows them."""

from __future__ import annotations

from enum import Enum
from typing import Any

from trunkline.v1.frame_pb2 import ClientFrame, ClosingFrame, ServerFrame

from edge.core.framing import framed
from edge.dialects.codec import Codec


class State(Enum):
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
        "closing",
        "codec",
        "early",
        "heard",
        "held",
        "is_arriving",
        "number",
        "opened",
        "pending",
        "silent_rounds",
        "socket",
        "state",
        "topics",
        "unanswered",
        "unanswered_bytes",
    )

    def __init__(self, number: int, socket: Any, codec: Codec, opened: bytes) -> None:
        self.number = number
        #: The shell's; the core only hands it back.
        self.socket = socket
        self.codec = codec
        #: The serialized ConnectionOpened, with which it is made known on each new link.
        self.opened = opened
        self.state = State.OPENING
        self.closing: ClosingFrame | None = None
        self.topics: list[Topic] = []
        self.pending: list[bytes] = []
        #: By id: the frame and its size.
        self.unanswered: dict[str, tuple[ClientFrame, int]] = {}
        self.unanswered_bytes = 0
        #: Nothing is read from the socket for now.
        self.held = False
        #: Sent right after a `resume` frame, before the router has answered; nothing more is read then,
        #: so it is no more than what one read of the socket brings.
        self.early: list[bytes] = []
        #: Connected or subscribed, and not joined yet: what was missed is still coming.
        self.is_arriving = False
        #: Set by the shell whenever bytes arrive; cleared by each round of heartbeats.
        self.heard = True
        self.silent_rounds = 0

    def encode(self, frame: ServerFrame) -> bytes:
        """The frame as its codec has it, with a WebSocket header."""
        return framed(self.codec.encode(frame), self.codec.binary)

    def __repr__(self) -> str:
        return f"<Connection {self.number} {self.state.name}, {len(self.topics)} topics>"


class Topic:
    """A topic that connections of this edge hear.

    `run` gathers frames that are ready together; they are encoded once per codec, joined, and given
    to each listener as one piece.
    """

    __slots__ = ("address", "epoch", "listeners", "number", "run", "seq")

    def __init__(self, number: int, address: bytes, epoch: str, seq: int) -> None:
        #: On the link; another one after each re-link.
        self.number = number
        #: The serialized Address, which names it across links.
        self.address = address
        #: How far the listeners have come.
        self.epoch = epoch
        self.seq = seq
        self.listeners: set[Connection] = set()
        #: Frames, and the number of the connection that each is not for, or 0.
        self.run: list[tuple[ServerFrame, int]] = []

    def flush(self) -> set[Connection]:
        """Give the run to the listeners; returns them."""
        run, self.run = self.run, []
        joined: dict[Codec, bytes] = {}
        frames: dict[Codec, list[bytes]] = {}
        excepted = {number for _, number in run if number}
        for connection in self.listeners:
            codec = connection.codec
            piece = joined.get(codec)
            if piece is None:
                pieces = frames[codec] = [connection.encode(frame) for frame, _ in run]
                piece = joined[codec] = b"".join(pieces)
            if connection.number in excepted:
                piece = b"".join(
                    own
                    for own, (_, number) in zip(frames[codec], run, strict=True)
                    if number != connection.number
                )
                if not piece:
                    continue
            connection.pending.append(piece)
        return self.listeners
