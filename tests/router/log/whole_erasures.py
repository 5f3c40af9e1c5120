"""Runs erasures piece by piece until they are complete."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from trunkline_router.core.values.log_records import Cursor, ErasedPiece, HistoryLimits
from trunkline_router.core.values.topics import TopicKey
from trunkline_router.log.interface import Log

from tests.router.log.engines import NOW_MS

MOST_PIECES = 10_000


async def whole(call: Callable[[Cursor | None], Awaitable[ErasedPiece]]) -> ErasedPiece:
    """Run all pieces and return their sum."""
    messages = receipts = 0
    topics: list[TopicKey] = []
    cursor: Cursor | None = None
    for _ in range(MOST_PIECES):
        piece = await call(cursor)
        messages += piece.messages
        receipts += piece.receipts
        topics += piece.topics
        cursor = piece.cursor
        if cursor is None:
            return ErasedPiece(messages, receipts, tuple(topics))
    raise AssertionError("it never ends")


async def erase_tenant(log: Log, tenant: str = "acme") -> ErasedPiece:
    return await whole(lambda _: log.erase_tenant(tenant))


async def erase_user(log: Log, user: str, tenant: str = "acme") -> ErasedPiece:
    return await whole(lambda cursor: log.erase_user(tenant, user, cursor))


async def prune(log: Log, tenant: str = "acme", *, now_ms: int = NOW_MS, **limits: int) -> int:
    """Prune all logs. Returns the number of messages erased."""
    kept = HistoryLimits(**limits)
    erased = await whole(lambda cursor: log.prune(tenant, kept, cursor, now_ms))
    assert (erased.receipts, erased.topics) == (0, ())
    return erased.messages
