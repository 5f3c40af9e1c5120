"""What an operator can set."""

from __future__ import annotations

from pydantic import Field, SecretStr
from trunkline_runtime.link_key import LinkKey
from trunkline_runtime.process_settings import File, ProcessSettings


class EdgeSettings(ProcessSettings):
    """Settings of an edge."""

    edge_listen: str = Field(
        default="127.0.0.1:8080", description="Address for WebSockets and HTTP; port 0 takes a free one"
    )
    router: str = Field(default="127.0.0.1:50051", description="Address of a router's gRPC port")
    router_tls: bool = Field(
        default=False, description="TLS to the router; by itself with the system's authorities"
    )
    router_ca: File = Field(
        default=None, description="Certificates (PEM) of the authorities that certify the router; for TLS"
    )
    router_cert: File = Field(
        default=None, description="Certificate (PEM) that the router is shown; for its port for links"
    )
    router_key: File = Field(default=None, description="Its key (PEM), without a passphrase")
    router_name: str = Field(
        default="", description="Name in the router's certificate, where that is not in its address"
    )
    link_key: LinkKey = Field(
        default=SecretStr(""), description="Key that the router is shown; the same as the router's"
    )
    tls_cert: File = Field(
        default=None,
        description="Certificate (PEM) of the edge, with its chain; for wss and https",
    )
    tls_key: File = Field(default=None, description="Its key (PEM), without a passphrase")
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
