"""Settings of a router, read from the environment."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, SecretStr, field_validator
from pydantic_settings import NoDecode
from trunkline_runtime.link_key import LinkKey
from trunkline_runtime.listen_address import OptionalTcpListener, TcpListener
from trunkline_runtime.process_settings import File, ProcessSettings

from trunkline_router.certificate_names import CertificateNames


class RouterSettings(ProcessSettings):
    """Settings of a router."""

    router_listen: TcpListener = Field(
        default="127.0.0.1:50051",
        description="Address for gRPC: host:port or [ipv6]:port; port 0 picks a free one",
    )
    tls_cert: File = Field(default=None, description="Certificate chain (PEM) of the router; enables TLS")
    tls_key: File = Field(
        default=None, description="Private key (PEM) of the certificate, without passphrase"
    )
    link_key: LinkKey = Field(
        default=SecretStr(""), description="Key that edges must send; at least 16 characters"
    )
    link_listen: OptionalTcpListener = Field(
        default="", description="Second address for gRPC, where edges must present a certificate"
    )
    tls_client_ca: File = Field(
        default=None, description="CA certificates (PEM) that issue the certificates of edges"
    )
    link_names: Annotated[tuple[str, ...], NoDecode] = Field(
        default=(),
        description="Names (DNS or URI, one label may be *) of which an edge's certificate must have one,"
        " comma-separated; empty accepts every certificate of that authority",
    )
    insecure_links: bool = Field(
        default=False,
        description="Accept links without credentials from anywhere, not only from this machine",
    )
    data_dir: Path = Field(
        default=Path("data"),
        description="Folder of the log, unless it is in PostgreSQL, and of uploads; created if missing",
    )
    database_url: SecretStr = Field(
        default=SecretStr(""),
        description="PostgreSQL database of the log, as postgresql://user:password@host/name, which other"
        " routers may share; if empty, the log is in the data folder",
    )
    ownership_lease_s: float = Field(
        default=5,
        ge=0.5,
        le=300,
        description="Silence after which a router loses the log in PostgreSQL to another one; the same"
        " at each of them",
    )
    data_key: SecretStr = Field(
        default=SecretStr(""),
        description="Key that encrypts secrets, and messages of tenants that want it: base64 of 32 bytes",
    )
    data_key_file: File = Field(
        default=None,
        description="File of such keys, one per row: the first encrypts, the others still decrypt",
    )
    tenants: Annotated[tuple[str, ...], NoDecode] = Field(
        default=(), description="Tenants to create without credentials, comma-separated; for trials"
    )
    open_to: Literal["loopback", "any"] = Field(
        default="loopback", description="Callers of these tenants: on this machine only, or anywhere"
    )
    tenants_file: Path | None = Field(
        default=None, description="TOML file that declares tenants; see docs/tenants.md"
    )
    operator_key: SecretStr = Field(
        default=SecretStr(""),
        description="Key of the operator; if empty, the key in operator.key in the data folder. Required with"
        " TRUNKLINE_DATABASE_URL",
    )
    max_connections: int = Field(
        default=2048,
        ge=1,
        description="Most gRPC connections on a port at a time; further ones are closed at once",
    )
    connection_idle_s: float = Field(
        default=600, ge=1, description="Time after which a gRPC connection without calls is closed"
    )
    lease_s: float = Field(default=10, gt=0, description="Silence after which an edge is considered dead")
    delivery_lease_s: float = Field(
        default=30,
        gt=0,
        description="Time after which an unsettled delivery is redelivered and a silent worker is dead",
    )
    reply_lease_s: float = Field(
        default=15, gt=0, description="Time after which a streamed reply whose worker is gone expires"
    )
    max_attempts: int = Field(
        default=10,
        ge=1,
        description="Failed deliveries of a message before it is a dead letter, if its agent sets none",
    )
    max_open_messages: int = Field(
        default=10_000, ge=1, description="Open messages of a tenant without its own limit"
    )
    max_open_bytes: int = Field(
        default=512 << 20, ge=1 << 20, description="Memory for the content of all open messages"
    )
    checkpoint_interval_s: float = Field(
        default=1, gt=0, description="Interval at which new content of open messages is written to disk"
    )
    checkpoint_bytes: int = Field(
        default=16 << 10,
        ge=1,
        description="New content of one open message beyond which it is written at once",
    )
    link_window: int = Field(default=4, ge=1, description="Batches that an edge may send unacknowledged")
    link_outbox_bytes: int = Field(
        default=2 << 20,
        ge=1 << 16,
        description="Output waiting for one edge beyond which its senders are held back",
    )
    upload_ttl_s: float = Field(
        default=3600, ge=1, description="Time for which an upload is kept for the message that uses it"
    )
    max_conversations: int = Field(
        default=100, ge=1, description="Groups that a connection may join in a tenant without its own limit"
    )

    @field_validator("tenants", "link_names", mode="before")
    @classmethod
    def _split(cls, value: Any) -> Any:
        if isinstance(value, str):
            return tuple(name.strip() for name in value.split(",") if name.strip())
        return value

    @field_validator("link_names")
    @classmethod
    def _check_names(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        CertificateNames(names)
        return names
