"""Erases the beginnings of logs that exceed a tenant's retention."""

from __future__ import annotations

from trunkline_router.core.values.log_records import Cursor, ErasedPiece, HistoryLimits
from trunkline_router.log.postgres.fence import FencedWriter


async def prune(
    writer: FencedWriter, tenant: str, limits: HistoryLimits, cursor: Cursor | None, now_ms: int
) -> ErasedPiece:
    """Erase the beginnings of some logs."""
    raise NotImplementedError
