"""The SQLite engine's schema: upgrades of older files, and query plans."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from trunkline.v1.message_pb2 import Message
from trunkline_router.core.values.log_records import (
    AppendResult,
    Attempts,
    DeadLettered,
    EntryKind,
    PageRequest,
    Transaction,
)
from trunkline_router.core.values.stored_records import Backlog, Registration, StoredDelivery, StoredTenant
from trunkline_router.core.values.topics import EMPTY, Position
from trunkline_router.log.interface import LogUnavailable
from trunkline_router.log.sqlite import (
    batch_writer,
    delivery_rows,
    erasure,
    log_walk,
    page_rows,
    pruning,
    statements,
)
from trunkline_router.log.sqlite.database_file import SCHEMA_VERSION, connect_writer
from trunkline_router.log.sqlite.engine import SqliteLog
from trunkline_router.log.sqlite.statements import Select, Write

from tests.router.log.engines import (
    ALICE,
    BOB,
    NOW_MS,
    append,
    edit,
    hashed_key,
    pending_entry,
    position,
    read,
)
from tests.router.log.whole_erasures import erase_tenant, erase_user, prune

EPOCH = "0123456789abc"
#: Versions of files that are upgraded.
OLD = range(1, SCHEMA_VERSION)


def open_log(path: Path) -> SqliteLog:
    return SqliteLog.open(path, clock=lambda: NOW_MS)


def write_version(path: Path, version: int) -> list[bytes]:
    """Write a file of an old version with a log of three messages. Returns their bodies."""
    bodies = []
    for seq in (1, 2, 3):
        message = pending_entry(text=f"old {seq}").message
        message.id = f"{EPOCH}-{seq}"
        message.position.CopyFrom(Position(EPOCH, seq).to_proto())
        message.created_at.FromMilliseconds(NOW_MS)
        bodies.append(message.SerializeToString())
    with closing(sqlite3.connect(path)) as db:
        db.executescript(
            Path(__file__).with_name(f"schema_version_{version}.sql").read_text(encoding="utf-8")
        )
        db.execute("PRAGMA journal_mode = WAL")
        db.execute(
            "INSERT INTO topics (topic_id, tenant, agent, platform, kind, target, epoch)"
            " VALUES (7, ?, ?, ?, ?, ?, ?)",
            (*ALICE, EPOCH),
        )
        for seq, body in enumerate(bodies, 1):
            db.execute(
                "INSERT INTO messages (topic_id, seq, created_ms, role, author_user, body)"
                " VALUES (7, ?, ?, 1, 'alice', ?)",
                (seq, NOW_MS, body),
            )
        for delivery_id, seq in ((41, 1), (42, 3)):
            db.execute(
                "INSERT INTO deliveries (delivery_id, tenant, agent, topic_id, seq)"
                " VALUES (?, 'acme', 'echo', 7, ?)",
                (delivery_id, seq),
            )
        for table, columns in (("recent_keys", (1, hashed_key(1))), ("idempotency", (hashed_key(2),))):
            values = (*columns, b"d", EPOCH, len(columns), 5, NOW_MS)
            db.execute(f"INSERT INTO {table} VALUES ({', '.join('?' * len(values))})", values)
        db.execute(f"PRAGMA user_version = {version}")
        db.commit()
    return bodies


def columns_of(path: Path) -> dict[str, list[tuple[object, ...]]]:
    """The columns of a file's tables, indexes and views."""
    with closing(sqlite3.connect(path)) as db:
        names = [name for (name,) in db.execute("SELECT name FROM sqlite_master ORDER BY name")]
        return {name: db.execute(f"PRAGMA table_xinfo('{name}')").fetchall() for name in names}


@pytest.mark.parametrize("version", OLD)
async def test_a_file_of_an_old_version_keeps_its_content(tmp_path: Path, version: int) -> None:
    path = tmp_path / "log.db"
    bodies = write_version(path, version)
    log = open_log(path)
    (page,) = await log.read([PageRequest(ALICE, 9, after=EMPTY)])
    assert page.entries == [(seq, EntryKind.MESSAGE, body) for seq, body in enumerate(bodies, 1)]
    assert page.head == Position(EPOCH, 3)
    assert await log.deliveries("acme", "echo", 0, 9) == [
        StoredDelivery(41, ALICE, bodies[0], 0),
        StoredDelivery(42, ALICE, bodies[2], 0),
    ]
    again = await append(log, *(pending_entry(key=hashed_key(n), digest=b"d") for n in (1, 2)))
    assert [(d.result, d.connections) for d in again] == [(AppendResult.DUPLICATE, 5)] * 2
    await log.close()


@pytest.mark.parametrize("version", OLD)
async def test_an_upgraded_file_supports_everything_new(tmp_path: Path, version: int) -> None:
    path = tmp_path / "log.db"
    bodies = write_version(path, version)
    log = open_log(path)
    first = pending_entry()
    first.message.ParseFromString(bodies[0])
    (changed, _) = await append(log, edit(first), read(ALICE, Position(EPOCH, 2)))
    await log.append(Transaction(attempts=[Attempts(41, 2)], dead_lettered=[DeadLettered(42, 3, "no use")]))
    await log.close()

    log = open_log(path)
    assert await log.heads([ALICE]) == [Position(EPOCH, 5)]
    assert await log.message("acme", f"{EPOCH}-1") == changed.message.SerializeToString()
    assert [d.attempts for d in await log.deliveries("acme", "echo", 0, 9)] == [2]
    assert await log.backlogs("acme") == [Backlog("echo", 1, NOW_MS, 1)]
    (new,) = await append(log, pending_entry(BOB, deliver=True))
    assert new.delivery_id == 43
    assert await prune(log, max_messages=4) == 1
    assert await log.heads([ALICE]) == [Position(EPOCH, 5)]
    await log.register(Registration([StoredTenant("acme", 1, b"", 1, 1)]))
    assert await log.reset(ALICE) == 2
    assert (await erase_tenant(log)).messages == 1
    await log.close()


@pytest.mark.parametrize("version", OLD)
async def test_an_upgraded_file_has_the_current_schema(tmp_path: Path, version: int) -> None:
    old, new = tmp_path / "old.db", tmp_path / "new.db"
    write_version(old, version)
    for path in (old, new):
        await open_log(path).close()
    assert columns_of(old) == columns_of(new)
    with closing(sqlite3.connect(old)) as db:
        assert db.execute("PRAGMA user_version").fetchone() == (SCHEMA_VERSION,)


@pytest.mark.parametrize(
    ("version", "in_the_way"),
    [
        (1, "dead_letters"),
        (2, "revocations"),
        (3, "audit"),
        (4, "tenant_keys"),
        (5, "log_state"),
        (6, "former_logs"),
        (7, ""),
    ],
)
async def test_a_failed_upgrade_leaves_the_file_unchanged(
    tmp_path: Path, version: int, in_the_way: str
) -> None:
    path = tmp_path / "log.db"
    write_version(path, version)
    with closing(sqlite3.connect(path)) as db:
        db.execute("CREATE TABLE other (other INTEGER)")
        if in_the_way:
            # Conflicts with a statement near the end.
            db.execute(f"CREATE INDEX {in_the_way} ON other (other)")
        else:
            db.execute("ALTER TABLE deliveries ADD COLUMN expires_ms TEXT")
    before = columns_of(path)
    with pytest.raises(LogUnavailable):
        open_log(path)
    assert columns_of(path) == before
    with closing(sqlite3.connect(path)) as db:
        assert db.execute("PRAGMA user_version").fetchone() == (version,)
        assert Message.FromString(db.execute("SELECT body FROM messages").fetchone()[0]).id == f"{EPOCH}-1"


def large_statements() -> dict[str, str]:
    """The largest form of each statement over rows."""
    found = {}
    for module in (
        batch_writer,
        delivery_rows,
        erasure,
        page_rows,
        pruning,
        statements,
    ):
        for name, value in vars(module).items():
            if isinstance(value, Write | Select):
                found[name] = value._texts[-1]
    return found


@pytest.mark.parametrize("name", large_statements())
def test_statements_over_rows_use_indexes(name: str, tmp_path: Path) -> None:
    """They scan their own rows only, and no table of the file."""
    text = large_statements()[name]
    with closing(connect_writer(tmp_path / "log.db")) as db:
        assert not scanned_by(db, text)


def scanned_by(db: sqlite3.Connection, text: str) -> set[str]:
    """The tables that a statement scans."""
    plan = db.execute(f"EXPLAIN QUERY PLAN {text}", [None] * text.count("?")).fetchall()
    tables = {row[0] for row in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    scanned = {row[3].split()[1] for row in plan if row[3].startswith("SCAN ")}
    return scanned & {*tables, "brought"}


def test_a_walk_over_a_tenants_logs_uses_an_index(tmp_path: Path) -> None:
    with closing(connect_writer(tmp_path / "log.db")) as db:
        for text in (log_walk._AFTER, log_walk._FROM):
            plan = [row[3] for row in db.execute(f"EXPLAIN QUERY PLAN {text}", [None] * 6)]
            assert any("(tenant=? AND (agent,platform,kind,target)>(?,?,?,?))" in step for step in plan), plan
            assert not any("TEMP B-TREE" in step for step in plan)


async def test_erasures_use_indexes(tmp_path: Path) -> None:
    log = open_log(tmp_path / "log.db")
    db = log._writer._db
    assert db is not None
    texts: set[str] = set()
    db.set_trace_callback(texts.add)
    (one, _) = await append(log, pending_entry(), pending_entry(BOB, deliver=True))
    await append(log, edit(one), read(ALICE, position(one)))
    for call in (
        prune(log, max_bytes=1, max_messages=1, max_age_ms=1, now_ms=NOW_MS + 2),
        erase_user(log, "alice"),
        log.reset(BOB),
        erase_tenant(log),
        log.sweep(NOW_MS),
    ):
        await call
    db.set_trace_callback(None)
    kinds = ("SELECT", "DELETE", "UPDATE")
    scanned = {text: scanned_by(db, text) for text in texts if text.startswith(kinds)}
    assert len(scanned) > 30
    # Small tables, or scans with a limit.
    few = {"tenants", "api_keys", "revocations", "erased", "recent_keys"}
    assert not {text: tables for text, tables in scanned.items() if tables - few}
    await log.close()
