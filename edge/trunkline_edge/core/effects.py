"""Effects: what the core asks its runtime to do.

Bytes to write are the exception, to avoid allocating an object per delivery: they wait in
`Connection.pending`, and the connection is in `EdgeCore.dirty`. The runtime writes those first, then carries
out the effects in order.
"""

from __future__ import annotations

from dataclasses import dataclass

from trunkline.v1.catalogue import Refused
from trunkline.v1.edge_service_pb2 import PoliciesTold, TenantGone, TenantPolicy
from trunkline.v1.frame_pb2 import AuthFrame, ClosingFrame

from trunkline_edge.core.connection import Connection
from trunkline_edge.core.handshakes import Handshake
from trunkline_edge.dialects.codec import UsesUploads


@dataclass(frozen=True, slots=True)
class Close:
    """Close the WebSocket with the code of `closing`, after everything written before."""

    connection: Connection
    closing: ClosingFrame


@dataclass(frozen=True, slots=True)
class RejectConnection:
    """Answer the handshake of a connection that was never accepted.

    `data` is `closing`, encoded, for protocols that accept the handshake and then close.
    """

    connection: Connection
    closing: ClosingFrame
    data: bytes


@dataclass(frozen=True, slots=True)
class RejectHandshake:
    """Answer the handshake of a client that has no connection yet."""

    handshake: Handshake
    reason: Refused


@dataclass(frozen=True, slots=True)
class PauseReading:
    """Read nothing from the client's socket until ResumeReading."""

    connection: Connection


@dataclass(frozen=True, slots=True)
class ResumeReading:
    """Read from the client's socket again."""

    connection: Connection


@dataclass(frozen=True, slots=True)
class Ping:
    """Probe whether the client still takes what is written to it."""

    connection: Connection


@dataclass(frozen=True, slots=True)
class VerifyToken:
    """Verify the token in `frame`, then call `verified` or `invalid` of TokenRefresh."""

    connection: Connection
    frame: AuthFrame


@dataclass(frozen=True, slots=True)
class FetchUploads:
    """Fetch the uploads that a frame refers to, then call `fetched` or `failed` of UploadFrames."""

    connection: Connection
    awaited: UsesUploads


@dataclass(frozen=True, slots=True)
class ApplyPolicy:
    """Apply a tenant policy from the router."""

    policy: TenantPolicy | TenantGone | PoliciesTold


Effect = (
    Close
    | RejectConnection
    | RejectHandshake
    | PauseReading
    | ResumeReading
    | Ping
    | VerifyToken
    | FetchUploads
    | ApplyPolicy
)
