"""Erases logs, and what users wrote in them."""

from __future__ import annotations

from trunkline_router.core.values.log_records import Cursor, ErasedPiece
from trunkline_router.core.values.topics import TopicKey
from trunkline_router.log.postgres.fence import FencedWriter
from trunkline_router.log.postgres.key_store import KeyStore


async def reset(writer: FencedWriter, topic: TopicKey) -> int:
    """Erase a log. Returns the number of its messages."""
    raise NotImplementedError


async def erase_tenant(writer: FencedWriter, tenant: str) -> ErasedPiece:
    """Erase some of a tenant's logs, or the tenant's own rows once no log is left."""
    raise NotImplementedError


async def erase_user(
    writer: FencedWriter, key_store: KeyStore, tenant: str, user: str, cursor: Cursor | None, now_ms: int
) -> ErasedPiece:
    """Erase some of a user's entries."""
    raise NotImplementedError
