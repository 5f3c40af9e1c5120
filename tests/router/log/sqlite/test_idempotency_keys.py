"""Idempotency keys before, during and after their move between the SQLite engine's tables."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path
from threading import Event

import pytest
from trunkline_router.core.values.log_records import AppendResult, Transaction
from trunkline_router.log.append_results import StoredResult
from trunkline_router.log.batch import Batch
from trunkline_router.log.interface import LogUnavailable
from trunkline_router.log.sqlite.engine import SqliteLog

from tests.router.log.engines import NOW_MS, append, hashed_key, pending_entry

MOST_RECENT = 20


def open_log(folder: Path, recent_keys: int = MOST_RECENT) -> SqliteLog:
    return SqliteLog.open(folder / "log.db", clock=lambda: NOW_MS, recent_keys=recent_keys)


@pytest.fixture
async def log(tmp_path: Path) -> AsyncIterator[SqliteLog]:
    log = open_log(tmp_path)
    yield log
    await log.close()


def counts(log: SqliteLog) -> tuple[int, int]:
    """Rows in `recent_keys` and in `idempotency`."""
    db = log._reader._db
    return tuple(  # type: ignore[return-value]
        db.execute(f"SELECT count(*) FROM {table}").fetchone()[0] for table in ("recent_keys", "idempotency")
    )


async def assert_kept(log: SqliteLog, numbers: range) -> None:
    """Check that exactly these keys are in use, each by the message whose seq is the key's number."""
    end = numbers.stop
    asked = [pending_entry(key=hashed_key(n), digest=b"d", repeat_only=True) for n in range(1, end + 5)]
    await log.append(Transaction(asked))
    assert [d.message.position.seq for d in asked if d.result is AppendResult.DUPLICATE] == list(numbers)
    assert {d.result for d in asked[end - 1 :]} == {AppendResult.NO_REPEAT}
    # Also as repeats within the transaction.
    again = await append(log, *(pending_entry(key=hashed_key(n), digest=b"d") for n in numbers))
    assert [(d.result, d.message.position.seq) for d in again] == [
        (AppendResult.DUPLICATE, n) for n in numbers
    ]


async def use(log: SqliteLog, number: int) -> None:
    (one,) = await append(log, pending_entry(key=hashed_key(number), digest=b"d"))
    assert (one.result, one.message.position.seq) == (AppendResult.COMMITTED, number)


async def test_keys_are_found_before_during_and_after_they_move(log: SqliteLog) -> None:
    seen = set()
    for number in range(1, 100):
        await use(log, number)
        await assert_kept(log, range(1, number + 1))
        recent, old = counts(log)
        seen.add((recent > 0, old > 0, recent + old > number))
        assert recent <= 1.5 * MOST_RECENT + 2
    assert seen == {(True, False, False), (True, True, True), (True, True, False)}


async def test_keys_are_found_after_a_kill_at_any_step_of_their_move(log: SqliteLog, tmp_path: Path) -> None:
    for number in range(1, 60):
        await use(log, number)
        # The files that a killed process leaves behind.
        left = tmp_path / str(number)
        left.mkdir()
        for name in ("log.db", "log.db-wal"):
            shutil.copy(tmp_path / name, left)
        reopened = open_log(left)
        await assert_kept(reopened, range(1, number + 1))
        for further in range(number + 1, number + 2 * MOST_RECENT):
            await use(reopened, further)
        await assert_kept(reopened, range(1, number + 2 * MOST_RECENT))
        await reopened.close()


async def test_keys_of_large_batches_do_not_accumulate(log: SqliteLog) -> None:
    for start in range(0, 3000, 150):
        await append(log, *(pending_entry(key=hashed_key(start + n), digest=b"d") for n in range(1, 151)))
        assert counts(log)[0] <= 3 * 150
    await assert_kept(log, range(1, 3001))


async def test_a_key_is_found_after_a_cancelled_append(
    log: SqliteLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    committed, let_go = Event(), Event()
    commit = log._writer.commit

    def commit_and_wait(batch: Batch) -> dict[bytes, StoredResult]:
        outcome = commit(batch)
        committed.set()
        let_go.wait()
        return outcome

    with monkeypatch.context() as patch:
        patch.setattr(log._writer, "commit", commit_and_wait)
        task = asyncio.create_task(use(log, 1))
        await asyncio.to_thread(committed.wait)
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
        let_go.set()
    await assert_kept(log, range(1, 2))


async def test_a_failed_write_leaves_the_known_keys_unchanged(log: SqliteLog) -> None:
    for number in range(1, 70):
        db = log._writer._db
        assert db is not None
        db.execute("PRAGMA max_page_count = 1")
        with pytest.raises(LogUnavailable, match="full"):
            await append(log, pending_entry(text="x" * 50_000, key=hashed_key(number), digest=b"d"))
        await assert_kept(log, range(1, number))
        await use(log, number)


async def test_expired_keys_are_deleted_from_both_tables(log: SqliteLog) -> None:
    used = 0
    # Up to three moves' worth of keys, and one more or less than each.
    for round_ in (1, 2, 9, 10, 11, 19, 20, 21, 29, 30, 31, 32, 33, 40, 41, 59):
        for _ in range(round_):
            used += 1
            await use(log, used)
        await assert_kept(log, range(used - round_ + 1, used + 1))
        # Twice: the first may begin near the end of the key space.
        for _ in range(2):
            await log.sweep(NOW_MS + 10**9)
        assert counts(log) == (0, 0)
        await assert_kept(log, range(used + 1, used + 1))


async def test_sweeps_walk_all_keys_a_bounded_piece_at_a_time(
    log: SqliteLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trunkline_router.log.sqlite.idempotency_keys._EXAMINED", 10)
    monkeypatch.setattr("trunkline_router.log.sqlite.idempotency_keys._EXAMINED_RECENT", 4)
    for count in (25, 13):
        await append(log, *(pending_entry(key=hashed_key(1000 * count + n)) for n in range(count)))
    assert counts(log) == (13, 25)
    left = []
    for _ in range(5):
        await log.sweep(NOW_MS + 10**9)
        left.append(counts(log))
    assert left == [(9, 15), (5, 5), (1, 0), (0, 0), (0, 0)]


async def test_sweeps_continue_past_keys_that_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trunkline_router.log.sqlite.idempotency_keys._EXAMINED", 10)
    now = NOW_MS
    log = SqliteLog.open(tmp_path / "log.db", clock=lambda: now, keep_keys_ms=1000, recent_keys=30)
    await append(log, *(pending_entry(key=bytes([200 + n]) * 16) for n in range(5)))
    now += 1000
    await append(log, *(pending_entry(key=bytes([n]) * 16) for n in range(25)))
    await append(log, *(pending_entry(key=bytes([100 + n]) * 16) for n in range(20)))
    assert counts(log) == (20, 30)
    for _ in range(3):
        await log.sweep(now + 1)
    assert counts(log) == (20, 25)
    await log.close()
