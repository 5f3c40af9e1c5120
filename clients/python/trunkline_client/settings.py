"""Settings of a client."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from ssl import SSLContext


@dataclass(frozen=True, slots=True)
class ClientSettings:
    """Timeouts, bounds of all queues, and options of the connection."""

    #: Bound of the attempts to connect in `Client.open`; 0 tries once.
    open_timeout_s: float = 10.0
    #: Bound of one attempt to connect.
    attempt_timeout_s: float = 5.0
    #: Bound of an orderly close; the socket is dropped after it.
    close_timeout_s: float = 1.0
    #: Bound of a frame from the edge.
    max_frame_bytes: int = 4 << 20
    #: Events waiting for the application; past either bound nothing is read from the socket.
    inbox_max_items: int = 1000
    inbox_max_bytes: int = 16 << 20
    #: Unanswered requests; past this bound the next one waits.
    max_unanswered: int = 256
    #: Bounds of the wait between two attempts to connect.
    backoff_base_s: float = 0.1
    backoff_cap_s: float = 5.0
    #: Window in which the edge joins deltas, 0 to 500; None leaves it to the edge.
    rollup_ms: int | None = None
    #: Headers of the connect request.
    headers: Mapping[str, str] = field(default_factory=dict)
    #: For a wss:// URL; None trusts the authorities that this machine trusts.
    ssl: SSLContext | None = None
