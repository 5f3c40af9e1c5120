"""Copies of logs between engines: the same log, whatever interrupted them."""

from __future__ import annotations

import asyncio
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from trunkline.v1.tenant_pb2 import TenantSettings
from trunkline_router.core.values.log_records import AppendResult
from trunkline_router.core.values.stored_records import Registration, StoredTenant
from trunkline_router.log.engines import discard_copy, migrate
from trunkline_router.log.interface import LogUnavailable
from trunkline_router.log.migration.copied_log import COPYING, CopyFailed
from trunkline_router.log.migration.copied_tables import TABLES, CopiedTable
from trunkline_router.log.migration.copier import CopyReport
from trunkline_router.log.postgres.copied_database import CopiedDatabase
from trunkline_router.log.postgres.database import PostgresDatabase
from trunkline_router.log.sqlite.copied_file import CopiedFile
from trunkline_runtime.process import StartError

from tests.router.log.engines import append, pending_entry
from tests.router.log.migration.random_logs import RandomLog
from tests.router.log.migration.tenant_logs import (
    contents,
    conversation,
    fill,
    keyed,
    open_log,
    results_of_repeats,
)
from tests.router.log.test_encryption import data_keys, row
from tests.router.log.whole_erasures import erase_tenant
from tests.support.postgres import shared_server


async def copy(source: object, target: object, *tenants: str) -> CopyReport:
    places = str(source), str(target)
    return await migrate(*places, list(tenants) or None, data_dir=Path("none"), progress=lambda *_: None)


def rows_of(path: Path) -> dict[str, Any]:
    """All rows of a log file, as SQLite has them; those without a checksum as if they had theirs."""
    with closing(sqlite3.connect(path)) as db:
        rows: dict[str, Any] = {}
        for table in TABLES:
            rows[table.name] = sorted(map(repr, db.execute(f"SELECT * FROM {table.name}")))
        for table in ("messages", "events"):
            rows[table] = sorted(repr(row[:-1]) for row in db.execute(f"SELECT * FROM {table}"))
        rows["open_deltas"] = list(
            db.execute("SELECT topic_id, seq, deltas FROM open_deltas ORDER BY topic_id, seq, delta_id")
        )
        rows["idempotency"] = sorted(
            db.execute(
                "SELECT * FROM idempotency UNION"
                " SELECT key, digest, epoch, seq, connections, created_ms FROM recent_keys"
                " WHERE key NOT IN (SELECT key FROM idempotency)"
            )
        )
        rows["sequences"] = dict(db.execute("SELECT name, seq FROM sqlite_sequence"))
        rows["version"] = db.execute("PRAGMA user_version").fetchone()
        return rows


@pytest.mark.parametrize("seed", range(6))
async def test_a_log_is_the_same_after_a_copy_to_postgres_and_back(
    tmp_path: Path, postgres_schema: str, seed: int
) -> None:
    first, second, third = (tmp_path / f"{n}.db" for n in range(3))
    RandomLog(seed).write(first)
    before = rows_of(first)
    there = await copy(first, postgres_schema)
    back = await copy(postgres_schema, second)
    again = await copy(second, third)
    assert rows_of(first) == before
    assert rows_of(second) == rows_of(third) == before
    assert there.tables == back.tables == again.tables
    assert {each.table: each.rows for each in there.tables} == {
        name: len(rows) for name, rows in before.items() if name not in ("sequences", "version")
    }


async def test_pieces_do_not_change_a_copy(
    tmp_path: Path, postgres_schema: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    RandomLog(1).write(tmp_path / "1.db")
    whole = await copy(tmp_path / "1.db", tmp_path / "2.db")
    for module in (
        "trunkline_router.log.sqlite.copied_file",
        "trunkline_router.log.postgres.copied_database",
    ):
        monkeypatch.setattr(f"{module}.PIECE_ROWS", 1)
    there = await copy(tmp_path / "1.db", postgres_schema)
    back = await copy(postgres_schema, tmp_path / "3.db")
    assert whole.tables == there.tables == back.tables


class Interrupted(Exception):
    """Stands for a kill: nothing of the copier runs after it."""


class Interruptions:
    """Interrupts a copy after a number of commits, in the middle of the next one or right after it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, engine: type) -> None:
        self.left = 0
        write = engine.write

        async def interrupted(copied: Any, *args: Any) -> None:
            if self.left == 0:
                raise Interrupted
            await write(copied, *args)
            self.left -= 1

        monkeypatch.setattr(engine, "write", interrupted)


@pytest.mark.parametrize("tenants", [(), ("evil", "acme")], ids=["whole", "tenants"])
@pytest.mark.parametrize("engine", ["sqlite", "postgres"])
async def test_an_interrupted_copy_continues(
    tmp_path: Path,
    postgres_schema: str,
    monkeypatch: pytest.MonkeyPatch,
    engine: str,
    tenants: tuple[str, ...],
) -> None:
    RandomLog(5).write(tmp_path / "1.db")
    expected = await copy(tmp_path / "1.db", tmp_path / "expected.db", *tenants)
    monkeypatch.setattr("trunkline_router.log.sqlite.copied_file.PIECE_ROWS", 15)
    is_sqlite = engine == "sqlite"
    target = tmp_path / "2.db" if is_sqlite else postgres_schema
    interruptions = Interruptions(monkeypatch, CopiedFile if is_sqlite else CopiedDatabase)
    rounds = 0
    while True:
        # Each time a little further.
        interruptions.left = rounds % 3 + 2
        rounds += 1
        try:
            report = await copy(tmp_path / "1.db", target, *tenants)
            break
        except Interrupted:
            if is_sqlite:
                with pytest.raises(LogUnavailable, match="unfinished copy"):
                    open_log(tmp_path / "2.db")
            elif rounds < 3:
                with pytest.raises(StartError, match="unfinished copy"):
                    await PostgresDatabase(postgres_schema).acquire(lambda: None)
            with pytest.raises(CopyFailed, match="unfinished copy"):
                await copy(target, tmp_path / "3.db")
    assert rounds > 5
    assert report.tables == expected.tables


async def test_a_copy_begins_again_if_its_source_was_written_to(
    tmp_path: Path, postgres_schema: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "1.db"
    log = open_log(source)
    await fill(log, "acme")
    await log.close()
    interruptions = Interruptions(monkeypatch, CopiedDatabase)
    interruptions.left = 12
    with pytest.raises(Interrupted):
        await copy(source, postgres_schema)
    log = open_log(source)
    await append(log, pending_entry(conversation("acme"), "meanwhile"))
    expected = await contents(log, "acme")
    await log.close()
    interruptions.left = -1
    report = await copy(source, postgres_schema)
    assert "the source was written to since the copy began: it began again" in report.warnings
    await copy(postgres_schema, tmp_path / "2.db")
    log = open_log(tmp_path / "2.db")
    assert await contents(log, "acme") == expected
    await log.close()


async def test_an_unfinished_copy_can_be_discarded(
    tmp_path: Path, postgres_schema: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("1.db", "2.db"):
        log = open_log(tmp_path / name)
        await fill(log, "acme" if name == "1.db" else "evil")
        await log.close()
    await copy(tmp_path / "2.db", postgres_schema)
    interruptions = Interruptions(monkeypatch, CopiedDatabase)
    interruptions.left = 12
    with pytest.raises(Interrupted):
        await copy(tmp_path / "1.db", postgres_schema, "acme")
    interruptions.left = -1
    with pytest.raises(CopyFailed, match="unfinished copy of another log"):
        await copy(tmp_path / "2.db", postgres_schema, "evil")
    with pytest.raises(CopyFailed, match="unfinished copy of tenants acme"):
        await copy(tmp_path / "1.db", postgres_schema)
    assert await discard_copy(postgres_schema, data_dir=tmp_path)
    assert not await discard_copy(postgres_schema, data_dir=tmp_path)
    await copy(postgres_schema, tmp_path / "3.db")
    before, after = rows_of(tmp_path / "2.db"), rows_of(tmp_path / "3.db")
    del before["sequences"], after["sequences"]
    assert after == before


@pytest.mark.parametrize("through", ["sqlite", "postgres"])
@pytest.mark.parametrize("encrypted", [False, True], ids=["plain", "encrypted"])
async def test_a_tenant_joins_others_and_returns(
    tmp_path: Path,
    postgres_schema: str,
    monkeypatch: pytest.MonkeyPatch,
    encrypted: bool,
    through: str,
) -> None:
    keys = data_keys(1) if encrypted else None
    if encrypted:
        monkeypatch.setenv("TRUNKLINE_DATA_KEY", row(1))
    expected = {}
    for file, tenants in (("1.db", ["umbrella", "acme"]), ("2.db", ["evil"])):
        log = open_log(tmp_path / file, keys)
        for tenant in tenants:
            await fill(log, tenant, encrypted=encrypted)
            expected[tenant] = await contents(log, tenant, with_ids=False)
        await log.close()
    joint = tmp_path / "joint.db" if through == "sqlite" else postgres_schema
    await copy(tmp_path / "2.db", joint)
    there = await copy(tmp_path / "1.db", joint, "acme")
    last = tmp_path / "last.db"
    await copy(joint, last)
    log = open_log(last, keys)
    for tenant in ("acme", "evil"):
        assert await contents(log, tenant, with_ids=False) == expected[tenant]
        assert {result for result, _ in await results_of_repeats(log, tenant)} == {AppendResult.DUPLICATE}
    other = pending_entry(conversation("acme"), "other", key=keyed("acme", 1).key, digest=b"x" * 8)
    await append(log, other)
    assert other.result is AppendResult.MISMATCH
    # New ids are above all that both logs ever gave.
    [entry] = await append(log, pending_entry(conversation("acme"), "new", deliver=True))
    deliveries = await log.deliveries("acme", "echo", 0, 99) + await log.deliveries("evil", "echo", 0, 99)
    ids = [each.delivery_id for each in deliveries]
    assert max(ids) == entry.delivery_id
    assert len(set(ids)) == len(ids)
    assert not [each for each in (await log.registered()).tenants if each.tenant == "umbrella"]
    await log.close()
    assert there.tables


async def test_a_standby_does_not_open_what_a_killed_copy_left(postgres_schema: str) -> None:
    """It connected, and found a log, before the copy began."""
    owner = PostgresDatabase(postgres_schema)
    log, lease = await owner.acquire(lambda: None)
    is_waiting = asyncio.Event()
    waiting = asyncio.create_task(PostgresDatabase(postgres_schema).acquire(is_waiting.set))
    await is_waiting.wait()
    connection = await asyncpg.connect(postgres_schema)
    await connection.execute(f"UPDATE installation SET schema_version = schema_version + {COPYING}")
    await connection.close()
    await log.close()
    await lease.release()
    with pytest.raises(StartError, match="unfinished copy"):
        await waiting


async def test_a_copy_ends_when_a_router_takes_the_log_over(
    tmp_path: Path, postgres_schema: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As one that was frozen finds out when it wakes: at its next write, and of its source at the end."""
    RandomLog(5).write(tmp_path / "1.db")
    await copy(tmp_path / "1.db", postgres_schema)
    taken: list[int] = []

    async def take_over(table: CopiedTable) -> None:
        if table.name == "receipts" and not taken:
            connection = await asyncpg.connect(postgres_schema)
            taken.append(await connection.fetchval("UPDATE routers SET alive = false RETURNING 1"))
            await connection.close()

    for engine in (CopiedDatabase, CopiedFile):
        write = engine.write

        async def writing(copied: Any, table: CopiedTable, *args: Any, write: Any = write) -> None:
            await take_over(table)
            await write(copied, table, *args)

        monkeypatch.setattr(engine, "write", writing)
    with pytest.raises(CopyFailed, match="took the log over"):
        await copy(postgres_schema, tmp_path / "2.db")
    taken.clear()
    assert await discard_copy(str(tmp_path / "2.db"), data_dir=tmp_path)
    other = shared_server().fresh_schema()
    postgres_schema = other
    with pytest.raises(CopyFailed, match="took the log over"):
        await copy(tmp_path / "1.db", other)
    assert taken


async def test_a_copy_continues_after_its_connection_was_ended(
    tmp_path: Path, postgres_schema: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As by a restart of the server: the transaction under way is lost, or its outcome unknown."""
    RandomLog(5).write(tmp_path / "1.db")
    expected = await copy(tmp_path / "1.db", tmp_path / "2.db")
    write = CopiedDatabase.write
    ended: list[str] = []

    async def writing(copied: CopiedDatabase, table: CopiedTable, *args: Any) -> None:
        if table.name in ("messages", "idempotency", "audit") and table.name not in ended:
            ended.append(table.name)
            shared_server().execute(f"SELECT pg_terminate_backend({copied._connection.get_server_pid()})")
        await write(copied, table, *args)

    monkeypatch.setattr(CopiedDatabase, "write", writing)
    for _ in range(3):
        with pytest.raises(CopyFailed, match=r"ended the session|connection broke"):
            await copy(tmp_path / "1.db", postgres_schema)
    report = await copy(tmp_path / "1.db", postgres_schema)
    assert report.tables == expected.tables


async def test_a_tenant_moves_between_databases(tmp_path: Path, postgres_schema: str) -> None:
    log = open_log(tmp_path / "1.db")
    for tenant in ("acme", "evil"):
        await fill(log, tenant)
    expected = await contents(log, "evil")
    await log.close()
    other = shared_server().fresh_schema()
    await copy(tmp_path / "1.db", postgres_schema)
    # Alone in a new log, it keeps its ids.
    await copy(postgres_schema, other, "evil")
    await copy(other, tmp_path / "2.db")
    log = open_log(tmp_path / "2.db")
    assert await contents(log, "evil") == expected
    assert [each.tenant for each in (await log.registered()).tenants] == ["evil"]
    await log.close()
    # And returns after it was deleted.
    log = open_log(tmp_path / "1.db")
    await erase_tenant(log, "evil")
    await log.close()
    await copy(other, tmp_path / "1.db", "evil")
    log = open_log(tmp_path / "1.db")
    returned = await contents(log, "evil", with_ids=False)
    audit, expected_audit = returned.pop("audit"), expected.pop("audit")
    assert audit == expected_audit + expected_audit
    for name in ("deliveries", "letters"):
        expected[name] = [each._replace(delivery_id=0) for each in expected[name]]
    assert returned == expected
    assert {result for result, _ in await results_of_repeats(log, "evil")} == {AppendResult.DUPLICATE}
    await log.close()


async def test_tenants_that_share_a_reserved_name_do_not_join(tmp_path: Path) -> None:
    for file, tenant in (("1.db", "acme"), ("2.db", "evil")):
        log = open_log(tmp_path / file)
        shared = TenantSettings(pipelines=["the-pipe"]).SerializeToString()
        await log.register(Registration([StoredTenant(tenant, 1, shared, 1, 1)]))
        await log.close()
    with pytest.raises(CopyFailed, match="pipeline the-pipe is reserved by two tenants, evil and acme"):
        await copy(tmp_path / "1.db", tmp_path / "2.db", "acme")


@pytest.mark.parametrize("tenants", [(), ("evil",)], ids=["whole", "tenant"])
@pytest.mark.parametrize("engine", ["sqlite", "postgres"])
async def test_a_complete_copy_may_be_repeated_until_it_is_used(
    tmp_path: Path, postgres_schema: str, engine: str, tenants: tuple[str, ...]
) -> None:
    """As after a kill right at the end of the first run."""
    RandomLog(5).write(tmp_path / "1.db")
    target = tmp_path / "2.db" if engine == "sqlite" else postgres_schema
    first = await copy(tmp_path / "1.db", target, *tenants)
    again = await copy(tmp_path / "1.db", target, *tenants)
    assert again.tables == first.tables
    assert again.warnings == ["the copy was complete already"]
    assert not await discard_copy(str(target), data_dir=tmp_path)
    if engine == "sqlite":
        log: Any = open_log(tmp_path / "2.db")
        lease = None
    else:
        log, lease = await PostgresDatabase(postgres_schema).acquire(lambda: None)
    await append(log, pending_entry(conversation("evil", "new")))
    await log.close()
    if lease is not None:
        await lease.release()
    with pytest.raises(CopyFailed, match=r"is not empty|has a tenant evil already"):
        await copy(tmp_path / "1.db", target, *tenants)
