"""Erasure in the SQLite engine: the size of pieces, and the rows that stay in the file."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from threading import Event
from typing import Any

import pytest
from trunkline_router.core.values.log_records import Cursor, ErasedPiece, HistoryLimits
from trunkline_router.core.values.topics import GROUP, PERSON, Position, TopicKey
from trunkline_router.log.sqlite.engine import SqliteLog

from tests.router.log.engines import NOW_MS, append, clock, pending_entry, read
from tests.router.log.whole_erasures import erase_tenant, erase_user, prune

ROOM: TopicKey = ("acme", "echo", "web", GROUP, "room")
MANY: list[TopicKey] = [("acme", "echo", "web", GROUP, f"{n:04}") for n in range(1000)]
TABLES = ("messages", "events", "receipts", "open_messages", "open_deltas", "topics", "erased")


@pytest.fixture
async def log(tmp_path: Path) -> AsyncIterator[SqliteLog]:
    log = SqliteLog.open(tmp_path / "log.db", clock=clock)
    yield log
    await log.close()


def rows(log: SqliteLog, table: str) -> int:
    db = log._writer._db
    assert db is not None
    return int(db.execute(f"SELECT count(*) FROM {table}").fetchone()[0])


async def pieces(
    log: SqliteLog, call: Callable[[Cursor | None], Awaitable[ErasedPiece]]
) -> tuple[list[int], int]:
    """Erase in pieces. Returns the rows written by each, and the sum of what they erased."""
    db = log._writer._db
    assert db is not None
    written, erased = [], 0
    cursor: Cursor | None = None
    while not written or cursor is not None:
        before = db.total_changes
        piece = await call(cursor)
        cursor = piece.cursor
        erased += piece.messages
        written.append(db.total_changes - before)
        assert len(written) < 1000
    return written, erased


@pytest.mark.parametrize(
    "limits", [HistoryLimits(1), HistoryLimits(0, 1), HistoryLimits(0, 0, 1), HistoryLimits(1, 1, 1)]
)
@pytest.mark.parametrize("topics", [[ROOM], MANY])
async def test_a_piece_of_a_pruning_is_bounded(
    log: SqliteLog, limits: HistoryLimits, topics: list[TopicKey]
) -> None:
    for _ in range(10_000 // len(topics) // 10):
        await append(log, *(pending_entry(topic) for topic in topics for _ in range(10)))
    written, erased = await pieces(log, lambda cursor: log.prune("acme", limits, cursor, NOW_MS + 2))
    assert max(written) <= 2_100
    assert len(written) >= 5
    assert erased == 10_000 - (0 if limits.max_age_ms else len(topics))


async def test_the_sizes_of_a_long_log_are_summed_once(log: SqliteLog) -> None:
    for _ in range(10):
        await append(log, *(pending_entry(ROOM) for _ in range(2_000)))
    one = len((await append(log, pending_entry(ROOM)))[0].stored)
    limits = HistoryLimits(max_bytes=one * 10_000)
    written, erased = await pieces(log, lambda cursor: log.prune("acme", limits, cursor, NOW_MS))
    assert 9_500 < erased <= 10_001
    # Five pieces to sum, and five to delete.
    assert len(written) <= 12


async def test_a_piece_of_a_users_erasure_is_bounded(log: SqliteLog) -> None:
    for _ in range(5):
        await append(log, *(pending_entry(ROOM) for _ in range(2_000)))
    written, erased = await pieces(log, lambda cursor: log.erase_user("acme", "alice", cursor))
    assert (max(written) <= 2_100, erased) == (True, 10_000)


async def test_a_piece_of_a_tenants_erasure_is_bounded_and_leaves_rows_to_be_swept(log: SqliteLog) -> None:
    await append(log, *(pending_entry(topic, deliver=True) for topic in MANY for _ in range(5)))
    written, erased = await pieces(log, lambda _: log.erase_tenant("acme"))
    assert (max(written) <= 2_100, erased) == (True, 5_000)
    assert (rows(log, "deliveries"), rows(log, "topics"), rows(log, "erased")) == (0, 0, 1000)
    sweeps = 0
    while rows(log, "erased"):
        before = rows(log, "messages")
        await log.sweep(NOW_MS)
        assert before - rows(log, "messages") <= 2_000
        sweeps += 1
    # Many small logs at a time.
    assert sweeps <= 4
    assert [rows(log, table) for table in TABLES] == [0] * len(TABLES)


async def test_an_erasure_invalidates_cached_heads(log: SqliteLog) -> None:
    own: TopicKey = ("acme", "echo", "web", PERSON, "alice")
    (_, kept) = await append(log, pending_entry(own), pending_entry(ROOM))
    await erase_user(log, "alice")
    assert log.head(own) is None
    assert log.head(ROOM) == Position(kept.position.epoch, 1)
    await prune(log, max_age_ms=1, now_ms=NOW_MS + 2)
    assert log.head(ROOM) == Position(kept.position.epoch, 1)
    await erase_tenant(log)
    assert log.head(ROOM) is None


async def test_a_cancelled_erasure_leaves_no_cached_heads(
    log: SqliteLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    await append(log, pending_entry(ROOM))
    erased, let_go = Event(), Event()
    erase = log._writer.erase_tenant

    def erase_and_wait(tenant: str) -> ErasedPiece:
        piece = erase(tenant)
        erased.set()
        let_go.wait()
        return piece

    with monkeypatch.context() as patch:
        patch.setattr(log._writer, "erase_tenant", erase_and_wait)
        task = asyncio.create_task(log.erase_tenant("acme"))
        await asyncio.to_thread(erased.wait)
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
        let_go.set()
    (first,) = await append(log, pending_entry(ROOM))
    assert first.position.seq == 1


async def test_columns_agree_with_bodies_after_an_erasure(log: SqliteLog) -> None:
    (one,) = await append(log, pending_entry(ROOM))
    await append(log, read(ROOM, Position(one.position.epoch, 1), "alice"))
    await erase_user(log, "alice")
    db: Any = log._writer._db
    assert db.execute("SELECT author_user, role FROM messages").fetchall() == [("", 1)]
    assert db.execute("SELECT user, message_seq FROM events").fetchall() == [("", 1)]
    assert b"alice" not in b"".join(body for (body,) in db.execute("SELECT body FROM messages"))
    assert b"alice" not in b"".join(body for (body,) in db.execute("SELECT body FROM events"))
