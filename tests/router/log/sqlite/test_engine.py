"""The SQLite engine: its file, lock, failures, cache and view."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import subprocess
import sys
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from pathlib import Path
from threading import Event

import pytest
from trunkline.v1.message_pb2 import MESSAGE_STATE_OPEN, Message
from trunkline_router.core.values.log_records import (
    AppendResult,
    Checkpoint,
    EntryKind,
    PageRequest,
    Producer,
    Transaction,
)
from trunkline_router.core.values.topics import EMPTY, GROUP, PERSON, USER, Position, TopicKey
from trunkline_router.log.append_results import StoredResult
from trunkline_router.log.batch import Batch
from trunkline_router.log.interface import LogUnavailable
from trunkline_router.log.sqlite.engine import SqliteLog

from tests.router.log.engines import (
    ALICE,
    BOB,
    NOW_MS,
    a_key,
    append,
    deltas,
    edit,
    end,
    hashed_key,
    pending_entry,
    read,
)
from tests.support.processes import environment, importing_tests

SCRIPT_ENV = environment(importing_tests())


def open_log(folder: Path, **options: int) -> SqliteLog:
    return SqliteLog.open(folder / "log.db", clock=lambda: NOW_MS, **options)


@pytest.fixture
async def log(tmp_path: Path) -> AsyncIterator[SqliteLog]:
    log = open_log(tmp_path)
    yield log
    await log.close()


async def everything(log: SqliteLog, topic: TopicKey = ALICE) -> list[int]:
    (page,) = await log.read([PageRequest(topic, 1_000_000, after=EMPTY, max_bytes=1 << 30)])
    return [entry.seq for entry in page.entries]


# Opening


async def test_a_file_open_elsewhere_is_refused_in_one_line(log: SqliteLog, tmp_path: Path) -> None:
    script = (
        "import sys; from pathlib import Path; from trunkline_router.log.sqlite.engine import SqliteLog\n"
        "try: SqliteLog.open(Path(sys.argv[1]))\n"
        "except Exception as error: print(type(error).__name__, error)"
    )
    command = [sys.executable, "-c", script, str(tmp_path / "log.db")]
    output = await asyncio.to_thread(subprocess.check_output, command, text=True, env=SCRIPT_ENV)
    assert output.startswith("LogUnavailable /")
    assert output.endswith(f"/log.db is in use by another router (process {os.getpid()})\n")
    assert output.count("\n") == 1


async def test_a_closed_file_can_be_opened_again(tmp_path: Path) -> None:
    await open_log(tmp_path).close()
    await open_log(tmp_path).close()


async def test_a_file_of_a_newer_version_is_refused_and_left_alone(tmp_path: Path) -> None:
    await open_log(tmp_path).close()
    with closing(sqlite3.connect(tmp_path / "log.db")) as db:
        db.execute("PRAGMA user_version = 99")
    for _ in range(2):
        with pytest.raises(LogUnavailable, match="has schema version 99"):
            open_log(tmp_path)


async def test_a_file_that_is_not_a_database_is_refused(tmp_path: Path) -> None:
    (tmp_path / "log.db").write_bytes(b"something else" * 100)
    with pytest.raises(LogUnavailable, match=r"log\.db: file is not a database"):
        open_log(tmp_path)


def test_a_missing_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(LogUnavailable):
        open_log(tmp_path / "nowhere")


async def test_a_closed_log_is_one_file_without_a_write_ahead_log(tmp_path: Path) -> None:
    log = open_log(tmp_path)
    await append(log, pending_entry())
    await log.close()
    assert not (tmp_path / "log.db-wal").exists()


async def test_every_commit_waits_for_the_disk(log: SqliteLog) -> None:
    db = log._writer._db
    assert db is not None
    assert db.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    assert db.execute("PRAGMA synchronous").fetchone() == (2,)


# Heads


async def test_heads_are_cached_by_appends_and_reads(log: SqliteLog) -> None:
    assert log.head(ALICE) is None
    await log.heads([ALICE])
    assert log.head(ALICE) == EMPTY
    (one,) = await append(log, pending_entry())
    assert log.head(ALICE) == Position(one.message.position.epoch, 1)
    await log.reset(ALICE)
    assert log.head(ALICE) in (None, EMPTY)


async def test_cached_heads_are_bounded_and_evicted_ones_are_read_again(tmp_path: Path) -> None:
    log = open_log(tmp_path, cached_heads=2)
    topics = [("acme", "echo", "web", PERSON, str(n)) for n in range(5)]
    for expected in (1, 2, 3):
        pending_entries = await append(log, *(pending_entry(topic) for topic in topics))
        assert [d.message.position.seq for d in pending_entries] == [expected] * 5
    assert sum(log.head(topic) is not None for topic in topics) == 2
    await log.close()


async def test_appends_continue_correctly_after_a_cancelled_commit(
    log: SqliteLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    await append(log, pending_entry())
    committed, let_go = Event(), Event()
    commit = log._writer.commit

    def commit_and_wait(batch: Batch) -> dict[bytes, StoredResult]:
        outcome = commit(batch)
        committed.set()
        let_go.wait()
        return outcome

    with monkeypatch.context() as patch:
        patch.setattr(log._writer, "commit", commit_and_wait)
        task = asyncio.create_task(append(log, pending_entry()))
        await asyncio.to_thread(committed.wait)
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
        let_go.set()
    assert log.head(ALICE) is None
    (after,) = await append(log, pending_entry())
    assert after.message.position.seq == 3
    assert await everything(log) == [1, 2, 3]


async def test_a_cancelled_reset_leaves_no_cached_head(log: SqliteLog) -> None:
    await append(log, pending_entry())
    log._appender.cached_heads.invalidate([ALICE])
    heads = asyncio.create_task(log.heads([ALICE]))
    reset = asyncio.create_task(log.reset(ALICE))
    done = Event()
    after_both = asyncio.create_task(log._writer_thread.call(done.set))
    await asyncio.sleep(0)
    # Both are done on the writer thread; the event loop has not been notified.
    done.wait()
    reset.cancel()
    with suppress(asyncio.CancelledError):
        await reset
    await heads
    await after_both
    (first,) = await append(log, pending_entry())
    assert first.message.position.seq == 1
    assert await everything(log) == [1]


# Failing


def set_most_pages(log: SqliteLog, pages: int) -> None:
    assert log._writer._db is not None
    log._writer._db.execute(f"PRAGMA max_page_count = {pages}")


async def test_a_full_disk_refuses_the_whole_batch_and_writes_resume_later(
    log: SqliteLog,
) -> None:
    key = a_key()
    (before,) = await append(log, pending_entry(deliver=True))
    set_most_pages(log, 1)
    batch = [pending_entry(text="x" * 50_000, key=key, deliver=True), pending_entry(BOB)]
    with pytest.raises(LogUnavailable, match="full"):
        await log.append(Transaction(batch, [before.delivery_id]))
    assert {d.result for d in batch} == {AppendResult.PENDING}
    assert await everything(log) == [1]
    assert await log.heads([ALICE, BOB]) == [Position(before.message.position.epoch, 1), EMPTY]
    assert [d.delivery_id for d in await log.deliveries("acme", "echo", 0, 9)] == [before.delivery_id]

    await log.append(Transaction(batch, [before.delivery_id]))
    assert {d.result for d in batch} == {AppendResult.COMMITTED}
    assert await everything(log) == [1, 2]
    assert [d.delivery_id for d in await log.deliveries("acme", "echo", 0, 9)] == [batch[0].delivery_id]


async def test_a_failed_commit_leaves_the_write_ahead_log_before_the_next(
    log: SqliteLog, tmp_path: Path
) -> None:
    await append(log, *(pending_entry(text="x" * 1000) for _ in range(100)))
    wal = tmp_path / "log.db-wal"
    assert wal.stat().st_size > 100_000
    set_most_pages(log, 1)
    with pytest.raises(LogUnavailable):
        await append(log, pending_entry(text="x" * 50_000))
    await log.heads([BOB])
    assert wal.stat().st_size == 0


async def test_writes_resume_once_they_succeed_again(tmp_path: Path) -> None:
    """The kernel forbids files to grow (RLIMIT_FSIZE), then allows it, in a separate process."""
    script = Path(__file__).with_name("refused_writes.py")
    command = [sys.executable, str(script), str(tmp_path / "log.db")]
    output = await asyncio.to_thread(subprocess.check_output, command, text=True, env=SCRIPT_ENV)
    refused, committed = map(int, output.split())
    assert refused > 0
    log = open_log(tmp_path)
    assert await everything(log) == list(range(1, committed + 1))
    await log.close()


async def test_a_killed_process_loses_nothing_committed(tmp_path: Path) -> None:
    script = Path(__file__).with_name("appends_forever.py")
    for _ in range(3):
        process = await asyncio.create_subprocess_exec(
            sys.executable, str(script), str(tmp_path / "log.db"), stdout=subprocess.PIPE, env=SCRIPT_ENV
        )
        assert process.stdout is not None
        lines = [await process.stdout.readline() for _ in range(40)]
        process.kill()
        lines += (await process.communicate())[0].splitlines(keepends=True)
        received = [line for line in lines if line.endswith(b"\n")][-1]
        head, place, count = map(int, received.split())
        log = open_log(tmp_path)
        (page,) = await log.read([PageRequest(ALICE, 1_000_000, after=EMPTY, max_bytes=1 << 30)])
        owed = await log.deliveries("acme", "echo", 0, 1_000_000)
        (opened,) = await log.open_messages()
        output = {
            entry.seq: Message.FromString(entry.body)
            for entry in page.entries
            if entry.kind is EntryKind.MESSAGE
        }
        keyed = [Message.FromString(one.message).position.seq for one in owed]
        again = await append(log, *(pending_entry(key=hashed_key(seq), repeat_only=True) for seq in keyed))
        await log.close()
        assert len(page.entries) >= head
        assert [entry.seq for entry in page.entries] == list(range(1, len(page.entries) + 1))
        # A transaction is visible as a whole.
        assert [(d.result, d.message.position.seq) for d in again] == [
            (AppendResult.DUPLICATE, seq) for seq in keyed
        ]
        ends = [entry for entry in page.entries if entry.kind is EntryKind.CHANGE]
        assert len(keyed) == 5 * (len(ends) + 1)
        assert len(output) == len(keyed) + len(ends) + 1
        # Only the last message is open.
        at = Message.FromString(opened.message).position.seq
        assert [seq for seq, one in output.items() if one.state == MESSAGE_STATE_OPEN] == [at]
        assert opened.deltas == [deltas(str(n)) for n in range(1, len(opened.deltas) + 1)]
        assert opened.producer.epoch == len(opened.deltas) + 1
        assert (at, len(opened.deltas)) >= (place, count)


# Reading with SQL


async def test_people_can_read_conversations_with_sql(log: SqliteLog, tmp_path: Path) -> None:
    group: TopicKey = ("acme", "echo", "qq", GROUP, "42")
    one, two, _ = await append(
        log, pending_entry(), pending_entry(group), pending_entry(("acme", "", "", USER, "alice"))
    )
    await append(log, edit(one), read(ALICE, Position(one.position.epoch, 1)))
    with closing(sqlite3.connect(f"file:{tmp_path / 'log.db'}?mode=ro", uri=True)) as db:
        rows = db.execute("SELECT * FROM conversation_log ORDER BY platform DESC").fetchall()
        columns = [column[0] for column in db.execute("SELECT * FROM conversation_log").description]
    at = "2023-11-14T22:13:20.123Z"
    assert columns == [
        *("tenant", "agent", "platform", "conversation_kind", "conversation_id"),
        *("seq", "created_at", "role", "user", "message_id", "encrypted"),
    ]
    assert rows == [
        ("acme", "echo", "web", "person", "alice", 1, at, "user", "alice", one.message.id, 0),
        ("acme", "echo", "qq", "group", "42", 1, at, "user", "alice", two.message.id, 0),
    ]


async def test_a_long_read_with_sql_does_not_delay_appends(log: SqliteLog, tmp_path: Path) -> None:
    await append(log, pending_entry())
    with (
        closing(sqlite3.connect(tmp_path / "log.db", check_same_thread=False)) as db,
        ThreadPoolExecutor(1) as thread,
    ):
        db.execute("BEGIN")
        count = thread.submit(lambda: db.execute("SELECT count(*) FROM messages").fetchone()[0])
        assert await asyncio.wrap_future(count) == 1
        await append(log, pending_entry())
        assert db.execute("SELECT count(*) FROM messages").fetchone()[0] == 1
    assert await everything(log) == [1, 2]


# Housekeeping


async def test_sweeps_delete_an_erased_log_piece_by_piece(log: SqliteLog) -> None:
    for _ in range(3):
        await append(log, *(pending_entry() for _ in range(1000)))
    (last,) = await append(log, pending_entry(producer=Producer("worker", 1)))
    place = Position(last.position.epoch, last.position.seq)
    await append(log, *(read(ALICE, place, f"u{n}") for n in range(1500)))
    checkpoints = [Checkpoint(ALICE, place.seq, Producer("worker", 1), deltas("a")) for _ in range(10)]
    await log.append(Transaction(checkpoints=checkpoints))

    def counts() -> list[int]:
        tables = ("messages", "events", "receipts", "open_messages", "open_deltas", "erased")
        db = log._reader._db
        return [db.execute(f"SELECT count(*) FROM {table}").fetchone()[0] for table in tables]

    assert counts() == [3001, 1500, 1500, 1, 10, 0]
    await log.reset(ALICE)
    left = [counts()]
    for _ in range(3):
        await log.sweep(NOW_MS)
        left.append(counts())
    assert left == [
        [1001, 1500, 1500, 1, 10, 1],
        [0, 501, 1500, 1, 10, 1],
        [0, 0, 1, 1, 10, 1],
        [0, 0, 0, 0, 0, 0],
    ]


async def test_the_deltas_of_an_ended_message_are_deleted(log: SqliteLog) -> None:
    one, two = await append(log, *(pending_entry(producer=Producer("worker", 1)) for _ in range(2)))
    for _ in range(3):
        checkpoints = [
            Checkpoint(ALICE, d.position.seq, Producer("worker", 1), deltas("a")) for d in (one, two)
        ]
        await log.append(Transaction(checkpoints=checkpoints))
    await append(log, end(one))
    rows = log._reader._db.execute("SELECT seq, count(*) FROM open_deltas GROUP BY seq").fetchall()
    assert rows == [(two.position.seq, 3)]


async def test_pages_larger_than_a_portion_are_read_whole(
    log: SqliteLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trunkline_router.log.sqlite.page_rows._PORTION_BYTES", 500)
    topics = [("acme", "echo", "web", PERSON, str(n)) for n in range(5)]
    for _ in range(3):
        pending_entries = await append(log, *(pending_entry(topic, "x" * 300) for topic in topics))
    await append(log, *(edit(one) for one in pending_entries))
    pages = await log.read([PageRequest(topic, 2) for topic in topics])
    assert [[entry.seq for entry in page.entries] for page in pages] == [[3, 4]] * 5
