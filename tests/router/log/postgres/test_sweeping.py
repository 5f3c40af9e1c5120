"""Erasure, pruning and housekeeping in PostgreSQL: the size of pieces, and what stays of routers."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
from trunkline_router.core.values.log_records import AppendResult, Cursor, ErasedPiece, HistoryLimits
from trunkline_router.core.values.topics import GROUP, TopicKey
from trunkline_router.log.interface import Log
from trunkline_router.log.postgres import sweeper

from tests.router.log.engines import (
    HOUR_MS,
    NOW_MS,
    a_key,
    append,
    clock,
    edit,
    hashed_key,
    pending_entry,
    position,
    read,
)
from tests.router.log.sealed_storage import Schema
from tests.router.log.whole_erasures import erase_tenant

ROOM: TopicKey = ("acme", "echo", "web", GROUP, "room")
MANY: list[TopicKey] = [("acme", "echo", "web", GROUP, f"{n:04}") for n in range(1000)]
#: Tables with rows of a log.
TABLES = ("messages", "events", "receipts", "open_messages", "open_deltas", "cancelled_messages", "erased")


@pytest.fixture
def schema(postgres_schema: str) -> Schema:
    return Schema(postgres_schema)


@pytest.fixture
async def log(schema: Schema) -> AsyncIterator[Log]:
    log = await schema.open()
    yield log
    await log.close()


async def rows(schema: Schema, table: str) -> int:
    ((count,),) = await schema.sql(f"SELECT count(*) FROM {table}")
    return int(count)


async def test_rows_of_erased_logs_are_deleted_in_bounded_pieces(schema: Schema, log: Log) -> None:
    first, *_ = await append(log, *(pending_entry(topic) for topic in MANY for _ in range(4)))
    await append(log, edit(first), read(first.topic, position(first)), pending_entry(ROOM))
    await erase_tenant(log)
    kept = await append(log, pending_entry(ROOM))
    sweeps = 0
    while await rows(schema, "erased"):
        before = await rows(schema, "messages")
        await log.sweep(NOW_MS)
        assert before - await rows(schema, "messages") <= sweeper.SWEPT_ROWS
        sweeps += 1
    # Many small logs at a time.
    assert sweeps <= 5
    assert [await rows(schema, table) for table in TABLES] == [1] + [0] * 6
    assert await log.message("acme", kept[0].message.id) == kept[0].stored


async def test_a_sweep_writes_nothing_if_nothing_is_due(schema: Schema, log: Log) -> None:
    await append(log, pending_entry(key=a_key()))
    before = await schema.sql("SELECT * FROM commits")
    for _ in range(3):
        await log.sweep(NOW_MS)
    assert await schema.sql("SELECT * FROM commits") == before


async def test_expired_keys_are_found_wherever_they_are_in_the_table(
    schema: Schema, log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sweeper, "EXAMINED_PAGES", 2)
    keys = [hashed_key(number) for number in range(2_000)]
    for start in range(0, len(keys), 500):
        clock.now_ms = NOW_MS + start
        await append(log, *(pending_entry(key=key) for key in keys[start : start + 500]))
    clock.now_ms = NOW_MS
    deleted = []
    for _ in range(30):
        before = await rows(schema, "idempotency")
        await log.sweep(NOW_MS + HOUR_MS + 1_000)
        deleted.append(before - await rows(schema, "idempotency"))
    assert sum(deleted) == 1_000
    # Two pages.
    assert max(deleted) < 250
    repeats = await append(log, *(pending_entry(key=keys[number]) for number in (999, 1_000)))
    assert [each.result for each in repeats] == [AppendResult.COMMITTED, AppendResult.DUPLICATE]


async def test_of_many_commits_the_newest_stay(
    schema: Schema, log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sweeper, "SWEPT_COMMITS", 30)
    for _ in range(50):
        await append(log, pending_entry())
    await log.close()
    log = await schema.open()
    try:
        for _ in range(40):
            await append(log, pending_entry())
        before = await schema.sql("SELECT incarnation, max(batch) FROM commits GROUP BY 1 ORDER BY 1")
        await log.sweep(NOW_MS)
        after = await schema.sql(
            "SELECT incarnation, max(batch), count(*) FROM commits GROUP BY 1 ORDER BY 1"
        )
        (former, last), (own, _) = before
        assert after[0] == (former, last, 1)
        assert after[1] == (own, before[1][1] + 1, sweeper.KEPT_COMMITS)
    finally:
        await log.close()


async def test_commits_of_forgotten_routers_are_deleted(
    schema: Schema, log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sweeper, "SWEPT_COMMITS", 1)
    await schema.sql("INSERT INTO routers (boot_id, address, alive) VALUES ('former', '', false)")
    await schema.sql("INSERT INTO commits (incarnation, batch) SELECT incarnation, 7 FROM routers")
    await schema.sql("INSERT INTO commits (incarnation, batch) VALUES (-1, 1), (-1, 2), (-2, 1)")
    await append(log, pending_entry())
    await log.sweep(NOW_MS)
    forgotten = "SELECT FROM commits WHERE incarnation NOT IN (SELECT incarnation FROM routers)"
    assert await schema.sql(forgotten) == []
    former = "SELECT batch FROM commits JOIN routers USING (incarnation) WHERE boot_id = 'former'"
    assert await schema.sql(former) == [(7,)]


async def test_pieces_of_erasures_and_prunings_are_bounded(schema: Schema, log: Log) -> None:
    for _ in range(3):
        await append(log, *(pending_entry(ROOM, deliver=True) for _ in range(2_000)))
    await append(log, *(pending_entry(topic) for topic in MANY))
    limits = HistoryLimits(max_messages=3_500)
    calls: list[Callable[[Cursor | None], Awaitable[ErasedPiece]]] = [
        lambda cursor: log.prune("acme", limits, cursor, NOW_MS),
        lambda cursor: log.erase_user("acme", "alice", cursor),
        lambda _: log.erase_tenant("acme"),
    ]
    for call, expected in zip(calls, (2_500, 4_500, 4_500), strict=True):
        erased, cursor = 0, None
        while True:
            deliveries = await rows(schema, "deliveries")
            piece = await call(cursor)
            assert deliveries - await rows(schema, "deliveries") <= 2_000
            if call is not calls[2]:
                assert piece.messages <= 2_000
            erased += piece.messages
            cursor = piece.cursor
            if cursor is None:
                break
        assert erased == expected
