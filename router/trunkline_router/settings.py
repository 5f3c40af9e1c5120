"""What an operator can set."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, SecretStr, field_validator
from pydantic_settings import NoDecode
from trunkline_runtime.link_key import LinkKey
from trunkline_runtime.process_settings import File, ProcessSettings


class RouterSettings(ProcessSettings):
    """Settings of a router."""

    router_listen: str = Field(
        default="127.0.0.1:50051", description="Address for gRPC; port 0 takes a free one"
    )
    tls_cert: File = Field(
        default=None, description="Certificate (PEM) of the router, with its chain; for TLS"
    )
    tls_key: File = Field(default=None, description="Its key (PEM), without a passphrase")
    link_key: LinkKey = Field(
        default=SecretStr(""), description="Key that edges must show; at least 16 characters"
    )
    link_listen: str = Field(
        default="", description="One more address for gRPC, where edges must show a certificate"
    )
    tls_client_ca: File = Field(
        default=None, description="Certificates (PEM) of the authorities that certify edges"
    )
    insecure_links: bool = Field(
        default=False, description="Edges elsewhere need no proof: whoever gets here may be one"
    )
    data_dir: Path = Field(default=Path("data"), description="Folder of the log; created if missing")
    tenants: Annotated[tuple[str, ...], NoDecode] = Field(
        default=(), description="Tenants to have that need no proof, separated by commas; for trying out"
    )
    open_to: Literal["loopback", "any"] = Field(
        default="loopback", description="From where these need none: from this machine, or from anywhere"
    )
    tenants_file: Path | None = Field(
        default=None, description="TOML file of tenants to have; see docs/tenants.md"
    )
    operator_key: SecretStr = Field(
        default=SecretStr(""),
        description="Key of the operator; empty for the one in operator.key in the data folder",
    )
    lease_s: float = Field(default=10, gt=0, description="Silence after which an edge is taken for dead")
    delivery_lease_s: float = Field(
        default=30,
        gt=0,
        description="Time after which an unsettled delivery, or a silent worker, is given up",
    )
    reply_lease_s: float = Field(
        default=15, gt=0, description="Time after which a streamed reply without its worker expires"
    )
    max_attempts: int = Field(
        default=10, ge=1, description="Deliveries of one message before it becomes a dead letter"
    )
    max_open_messages: int = Field(
        default=10_000, ge=1, description="Open messages of a tenant without a limit of its own"
    )
    max_open_bytes: int = Field(
        default=512 << 20, ge=1 << 20, description="What all open messages may hold together"
    )
    checkpoint_interval_s: float = Field(
        default=1, gt=0, description="How often what was added to open messages is written to disk"
    )
    checkpoint_bytes: int = Field(
        default=16 << 10, ge=1, description="Added to one open message, beyond which it is written at once"
    )
    link_window: int = Field(default=4, ge=1, description="Batches that an edge may have under way")
    link_outbox_bytes: int = Field(
        default=2 << 20, ge=1 << 16, description="Waiting for one edge, beyond which senders are held back"
    )
    max_conversations: int = Field(
        default=100, ge=1, description="Groups a connection may join in a tenant without a limit of its own"
    )

    @field_validator("tenants", mode="before")
    @classmethod
    def _split(cls, value: Any) -> Any:
        if isinstance(value, str):
            return tuple(name.strip() for name in value.split(",") if name.strip())
        return value
