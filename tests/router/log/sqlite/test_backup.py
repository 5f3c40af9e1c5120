"""Backups of the SQLite engine's file, and checks of it."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import stat
from contextlib import closing
from pathlib import Path

import pytest
from structlog.testing import capture_logs
from trunkline_router.core.values.log_records import PageRequest
from trunkline_router.core.values.topics import EMPTY
from trunkline_router.log.backup_manifest import BackupManifest, load_manifest, manifest_path, sha256_of
from trunkline_router.log.interface import BackupFailed, LogUnavailable
from trunkline_router.log.sqlite import backup as backup_module
from trunkline_router.log.sqlite import writer as writer_module
from trunkline_router.log.sqlite.backup import back_up, check_file
from trunkline_router.log.sqlite.database_file import cancel_long_reads
from trunkline_router.log.sqlite.engine import SqliteLog

from tests.router.log.engines import ALICE, BOB, append, edit, pending_entry


def run_backup(source: Path, target: Path, *, force: bool = False) -> BackupManifest:
    return back_up(source, target, force=force, progress=lambda share: None)


async def log_with(path: Path, messages: int) -> SqliteLog:
    log = SqliteLog.open(path)
    first, *_ = await append(log, *(pending_entry(text=f"m{n}", deliver=True) for n in range(messages)))
    await append(log, edit(first), pending_entry(BOB))
    return log


async def test_a_backup_of_a_running_log_is_whole_private_and_described(tmp_path: Path) -> None:
    log = await log_with(tmp_path / "log.db", 5)
    target = tmp_path / "out" / "backup.db"
    target.parent.mkdir()
    manifest = await asyncio.to_thread(run_backup, tmp_path / "log.db", target)
    await append(log, pending_entry(text="later"))
    await log.close()
    assert (manifest.messages, manifest.topics, manifest.tenants) == (6, 2, 0)
    assert (manifest.sha256, manifest.bytes) == (sha256_of(target), target.stat().st_size)
    assert load_manifest(target) == manifest
    assert sorted(os.listdir(target.parent)) == ["backup.db", "backup.db.json"]
    assert [stat.S_IMODE(path.stat().st_mode) for path in target.parent.iterdir()] == [0o600] * 2
    assert check_file(target) == []
    copy = SqliteLog.open(target)
    (page,) = await copy.read([PageRequest(ALICE, 99, after=EMPTY)])
    assert page.head.seq == 6
    assert len(await copy.deliveries("acme", "echo", 0, 99)) == 5
    await copy.close()


async def test_a_backup_ends_while_the_log_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backup_module, "STEP_PAGES", 4)
    log = await log_with(tmp_path / "log.db", 200)
    running = asyncio.create_task(asyncio.to_thread(run_backup, tmp_path / "log.db", tmp_path / "backup.db"))
    written = 0
    while not running.done():
        await append(log, pending_entry(text="x" * 900))
        written += 1
    manifest = await running
    assert written > 10
    assert manifest.messages <= 201 + written
    assert check_file(tmp_path / "backup.db") == []
    await log.close()


async def test_a_backup_replaces_nothing_without_force(tmp_path: Path) -> None:
    log = await log_with(tmp_path / "log.db", 1)
    await log.close()
    target = tmp_path / "backup.db"
    target.write_text("precious")
    with pytest.raises(BackupFailed, match="--force"):
        run_backup(tmp_path / "log.db", target)
    assert target.read_text() == "precious"
    run_backup(tmp_path / "log.db", target, force=True)
    assert check_file(target) == []
    with pytest.raises(BackupFailed, match="path of its own"):
        run_backup(tmp_path / "log.db", tmp_path / "log.db", force=True)


@pytest.mark.parametrize("limit", ["wal", "space"])
async def test_a_backup_that_would_harm_the_router_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: str
) -> None:
    log = await log_with(tmp_path / "log.db", 5)
    if limit == "wal":
        monkeypatch.setattr(backup_module, "MAX_WAL_BYTES", 1000)
        expected = "log.db-wal has grown to"
    else:
        monkeypatch.setattr(backup_module, "SPARE_BYTES", 1 << 62)
        expected = "MiB free"
    (tmp_path / "out").mkdir()
    with pytest.raises(BackupFailed, match=expected):
        run_backup(tmp_path / "log.db", tmp_path / "out" / "backup.db")
    assert os.listdir(tmp_path / "out") == []
    assert not (tmp_path / "log.db.backup").exists()
    await log.close()


async def test_the_router_ends_a_backup_that_keeps_it_from_reopening_its_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backup_module, "STEP_PAGES", 1)
    log = await log_with(tmp_path / "log.db", 50)

    def cancel(share: float) -> None:
        cancel_long_reads(tmp_path / "log.db")

    with pytest.raises(BackupFailed, match="had to reopen"):
        back_up(tmp_path / "log.db", tmp_path / "backup.db", force=False, progress=cancel)
    await log.close()


async def test_the_router_ends_a_check_that_keeps_it_from_reopening_its_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = await log_with(tmp_path / "log.db", 50)
    with monkeypatch.context() as patch:
        patch.setattr(
            backup_module, "page_problems", lambda db, whole: cancel_long_reads(tmp_path / "log.db")
        )
        patch.setattr(backup_module, "HANDLER_STEPS", 1)
        with pytest.raises(BackupFailed, match="had to reopen"):
            check_file(tmp_path / "log.db")
    await log.close()
    assert check_file(tmp_path / "log.db") == []
    assert not (tmp_path / "log.db.check").exists()


async def test_a_check_at_start_that_takes_too_long_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = await log_with(tmp_path / "log.db", 500)
    await log.close()
    monkeypatch.setattr(writer_module, "QUICK_CHECK_S", 0.0)
    with capture_logs() as lines:
        log = SqliteLog.open(tmp_path / "log.db")
    assert [line["event"][:27] for line in lines] in ([], ["checked only a part of the "])
    await append(log, pending_entry())
    await log.close()


async def test_one_backup_runs_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backup_module, "STEP_PAGES", 1)
    log = await log_with(tmp_path / "log.db", 5)

    def start_another(share: float) -> None:
        if share < 0.9:
            with pytest.raises(BackupFailed, match="another backup"):
                run_backup(tmp_path / "log.db", tmp_path / "other.db")

    back_up(tmp_path / "log.db", tmp_path / "backup.db", force=False, progress=start_another)
    await log.close()


@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        ("DELETE FROM messages WHERE seq = 2", "entries instead of 6"),
        ("INSERT INTO events VALUES (1, 3, 0, 0, 1, '', x'', NULL)", "two entries with seq 3"),
        ("DELETE FROM messages WHERE topic_id = 2", None),
        ("UPDATE deliveries SET seq = 77 WHERE seq = 1", "refers to a message that is missing"),
        ("DELETE FROM topics WHERE topic_id = 2", "which does not exist"),
        ("UPDATE sqlite_sequence SET seq = 1", "counter of ids"),
        ("UPDATE messages SET body = zeroblob(9) WHERE seq = 4", "entry 4 of log 1 in messages"),
        ("UPDATE events SET body = zeroblob(9)", "entry 6 of log 1 in events"),
    ],
)
async def test_a_check_finds_what_breaks_the_rules_of_the_log(
    tmp_path: Path, damage: str, expected: str | None
) -> None:
    path = tmp_path / "log.db"
    await (await log_with(path, 5)).close()
    assert check_file(path) == []
    with closing(sqlite3.connect(path)) as db:
        db.execute(damage)
        db.commit()
    if expected is None:
        # A log of one message that is missing cannot be told from one whose entries are all pruned.
        return
    assert any(expected in problem for problem in check_file(path))
    with pytest.raises(BackupFailed, match="damaged"):
        run_backup(path, tmp_path / "backup.db")
    assert not (tmp_path / "backup.db").exists()


async def test_a_damaged_page_is_found(tmp_path: Path) -> None:
    path = tmp_path / "log.db"
    await (await log_with(path, 300)).close()
    with path.open("r+b") as file:
        for page in range(12, 30, 3):
            file.seek(page * 1024)
            file.write(b"\xff" * 64)
    assert check_file(path) != []
    with pytest.raises(BackupFailed):
        run_backup(path, tmp_path / "backup.db")


async def test_a_log_that_is_missing_is_named(tmp_path: Path) -> None:
    for call in (check_file, lambda path: run_backup(path, tmp_path / "backup.db")):
        with pytest.raises(BackupFailed, match=r"none\.db does not exist"):
            call(tmp_path / "none.db")
    assert os.listdir(tmp_path) == []


async def test_a_failed_writer_cancels_the_backup_that_blocks_it(tmp_path: Path) -> None:
    path = tmp_path / "log.db"
    log = await log_with(path, 1)
    (tmp_path / "log.db.backup").touch()
    with closing(sqlite3.connect(path, isolation_level=None)) as reader:
        reader.execute("BEGIN")
        reader.execute("SELECT count(*) FROM messages").fetchone()
        await append(log, pending_entry(text="after the snapshot"))
        log._writer._discard()
        with pytest.raises(LogUnavailable, match="a reader keeps"):
            await append(log, pending_entry(text="blocked"))
        assert not (tmp_path / "log.db.backup").exists()
    await append(log, pending_entry(text="free again"))
    await log.close()


def test_a_backup_without_manifest_has_none(tmp_path: Path) -> None:
    assert load_manifest(tmp_path / "backup.db") is None
    manifest_path(tmp_path / "backup.db").write_text("{}")
    with pytest.raises(ValueError, match="is not a backup's manifest"):
        load_manifest(tmp_path / "backup.db")
