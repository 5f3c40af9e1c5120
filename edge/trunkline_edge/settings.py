"""Settings of an edge process, from the environment and the command line."""

from __future__ import annotations

from pydantic import Field, SecretStr
from trunkline_runtime.link_key import LinkKey
from trunkline_runtime.listen_address import Listener
from trunkline_runtime.process_settings import File, ProcessSettings
from trunkline_runtime.router_addresses import Routers

from trunkline_edge.path_prefix import PathPrefix


class EdgeSettings(ProcessSettings):
    """Settings of an edge."""

    edge_listen: Listener = Field(
        default="127.0.0.1:8080",
        description="Address for WebSockets and HTTP: host:port, [ipv6]:port or unix:/path;"
        " port 0 chooses a free one",
    )
    path_prefix: PathPrefix = Field(
        default="", description="Prefix of all paths, such as /chat; probes are served without it, too"
    )
    router: Routers = Field(
        default="127.0.0.1:50051",
        description="Address of a router's gRPC port; several of routers that share one database are"
        " separated by commas, and the edge follows the one that owns the log",
    )
    router_tls: bool = Field(
        default=False, description="TLS to the router, trusting the system's authorities"
    )
    router_ca: File = Field(
        default=None, description="Certificates (PEM) of the authorities to trust for the router; enables TLS"
    )
    router_cert: File = Field(
        default=None, description="Client certificate (PEM) for the router's port for links"
    )
    router_key: File = Field(default=None, description="Its key (PEM), without a passphrase")
    router_name: str = Field(
        default="", description="Name in the router's certificate, if it differs from its address"
    )
    router_proxy: bool = Field(
        default=False,
        description="Connect to the router through the proxy in grpc_proxy, https_proxy or http_proxy",
    )
    link_key: LinkKey = Field(default=SecretStr(""), description="Link key, the same as the router's")
    tls_cert: File = Field(
        default=None,
        description="Certificate (PEM) of the edge, with its chain; for wss and https",
    )
    tls_key: File = Field(default=None, description="Its key (PEM), without a passphrase")
    edge_id: str = Field(
        default="",
        description="Name of this edge; if empty random, behind the name in its certificate for links",
    )
    # A frame may grow fivefold in the link's encoding, and must fit into one gRPC message of 16 MiB.
    frame_bytes: int = Field(
        default=1 << 20, ge=1024, le=2 << 20, description="Largest frame accepted from a client"
    )
    large_frame_bytes: int = Field(
        default=11 << 20,
        ge=1024,
        le=12 << 20,
        description="Largest frame accepted from clients of protocols with large frames",
    )
    max_connections: int = Field(default=50_000, ge=1, description="Most connections at a time")
    unanswered: int = Field(default=64, ge=1, description="Most unanswered requests of one client")
    heartbeat_s: int = Field(default=25, ge=1, description="Interval between pings of a client")
    handshake_timeout_s: float = Field(default=10, gt=0, description="Time limit for a client's handshake")
    max_http_connections: int = Field(
        default=4096,
        ge=1,
        description="Most HTTP connections at a time, idle ones included; beyond it those are closed first",
    )
    http_timeout_s: float = Field(
        default=30,
        gt=0,
        description="Time limit for the body of an HTTP request, and for a client that takes no response",
    )
    # Over the idle timeouts of load balancers, most of which are 60 s: the edge must not close first.
    http_keep_alive_s: int = Field(
        default=75, ge=0, description="Time for which an HTTP connection is kept for the next request"
    )
    max_handshakes: int = Field(default=2000, ge=1, description="Most handshakes in progress at a time")
    outbox_bytes: int = Field(
        default=4 << 20, ge=1 << 16, description="Backlog of a client, beyond which it is closed as slow"
    )
    outbox_total_bytes: int = Field(
        default=64 << 20,
        ge=1 << 20,
        description="Backlog of all clients, beyond which the router gets no credit",
    )
    rollup_ms: int = Field(
        default=40,
        ge=0,
        le=500,
        description="Window in which deltas are joined for clients that ask for none",
    )
    link_window: int = Field(default=4, ge=1, description="Batches that the router may have in flight")
    drain_s: float = Field(
        default=5, ge=0, description="Time over which closing clients is spread on SIGTERM"
    )
