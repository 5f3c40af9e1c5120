"""Limits of one edge."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class EdgeLimits:
    """Limits of one edge."""

    frame_bytes: int = 1 << 20
    #: Unanswered requests of one connection, and their bytes.
    unanswered: int = 64
    unanswered_bytes: int = 256 * 1024
    #: Bytes waiting for the router, beyond which clients that send are not read from.
    uplink_bytes: int = 16 << 20
    #: Batches that the router may have in flight.
    link_window: int = 4
    heartbeat_s: int = 25
    max_connections: int = 50_000
    max_handshakes: int = 2000
    handshake_timeout_s: float = 10
    #: Backlog of one client, beyond which it is closed as slow.
    outbox_bytes: int = 4 << 20
    #: Backlog of all clients, beyond which the router gets no credit.
    outbox_total_bytes: int = 64 << 20
    #: A client that takes nothing for this long during congestion is closed.
    stall_s: float = 2.0
