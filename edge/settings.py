"""What an operator can set."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from shared.cli import ProcessSettings


class EdgeSettings(ProcessSettings):
    """Settings of an edge."""

    edge_listen: str = Field(
        default="127.0.0.1:8080", description="Address for WebSockets and HTTP; port 0 takes a free one"
    )
    router: str = Field(default="127.0.0.1:50051", description="Address of a router's gRPC port")
    tenants_file: Path | None = Field(
        default=None, description="TOML file of what the edge must know of tenants; see docs/dialects.md"
    )
    open_to: Literal["loopback", "any"] = Field(
        default="loopback",
        description="Where HTTP requests for tenants without tokens may come from: this machine, or anywhere",
    )
    edge_id: str = Field(default="", description="Name of this edge; empty for one made at random")
    # A frame may grow fivefold in the link's encoding, and must fit into one gRPC message of 16 MiB.
    frame_bytes: int = Field(
        default=1 << 20, ge=1024, le=2 << 20, description="Largest frame taken from a client"
    )
    large_frame_bytes: int = Field(
        default=11 << 20,
        ge=1024,
        le=12 << 20,
        description="Largest frame taken from a client of another system's protocol that sends large ones",
    )
    max_connections: int = Field(default=50_000, ge=1, description="Connections at a time")
    unanswered: int = Field(default=64, ge=1, description="Requests of one client under way at a time")
    heartbeat_s: int = Field(default=25, ge=1, description="How often clients are pinged")
    handshake_timeout_s: float = Field(default=10, gt=0, description="Time for a client's handshake")
    max_handshakes: int = Field(default=2000, ge=1, description="Handshakes under way at a time")
    outbox_bytes: int = Field(
        default=4 << 20, ge=1 << 16, description="Buffered for one client, beyond which it is closed as slow"
    )
    outbox_total_bytes: int = Field(
        default=64 << 20, ge=1 << 20, description="Buffered for all, beyond which the router is held back"
    )
    rollup_ms: int = Field(
        default=40,
        ge=0,
        le=500,
        description="Window in which deltas for a client that asks for none are joined",
    )
    link_window: int = Field(default=4, ge=1, description="Batches that the router may have under way")
    drain_s: float = Field(default=5, ge=0, description="Time over which clients are closed on SIGTERM")
