"""What an operator can set."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator
from pydantic_settings import NoDecode

from shared.cli import ProcessSettings


class RouterSettings(ProcessSettings):
    """Settings of a router."""

    router_listen: str = Field(
        default="127.0.0.1:50051", description="Address for gRPC; port 0 takes a free one"
    )
    data_dir: Path = Field(default=Path("data"), description="Folder of the log; created if missing")
    tenants: Annotated[tuple[str, ...], NoDecode] = Field(
        default=("demo",), description="Tenants there are, separated by commas"
    )
    open_to: Literal["loopback", "any"] = Field(
        default="loopback", description="Where clients may connect from: this machine only, or anywhere"
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
    max_open_messages: int = Field(default=10_000, ge=1, description="Open messages of one tenant")
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
    max_conversations: int = Field(default=100, ge=0, description="Groups that one connection may join")

    @field_validator("tenants", mode="before")
    @classmethod
    def _split(cls, value: Any) -> Any:
        if isinstance(value, str):
            return tuple(name.strip() for name in value.split(",") if name.strip())
        return value
