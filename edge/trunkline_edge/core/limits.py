"""Quotas of one edge."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class EdgeLimits:
    """Bounds of one edge."""

    frame_bytes: int = 1 << 20
    #: Requests of one connection that may wait for their answer, and their bytes.
    unanswered: int = 64
    unanswered_bytes: int = 256 * 1024
    #: Waiting for the router, beyond which clients that send are held back.
    uplink_bytes: int = 16 << 20
    #: Batches that the router may have under way.
    link_window: int = 4
    heartbeat_s: int = 25
