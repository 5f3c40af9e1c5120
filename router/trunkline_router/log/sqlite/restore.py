"""Restores a backup: the file takes the log's place only when nothing in it can hide what was lost."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import sqlite3
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from glob import escape
from pathlib import Path
from typing import Any

from trunkline_runtime.folder_sync import sync_folder
from trunkline_runtime.private_files import create_private_file, create_private_folder, open_private

from trunkline_router.log.backup_manifest import BackupManifest, load_manifest, sha256_of
from trunkline_router.log.data_keys import DataKeyError, DataKeys
from trunkline_router.log.interface import BackupFailed, LogUnavailable
from trunkline_router.log.sqlite.backup import Progress, connect_to_snapshot
from trunkline_router.log.sqlite.commit_mark import (
    CommitMark,
    LogState,
    read_mark,
    read_state,
    write_commits,
)
from trunkline_router.log.sqlite.database_file import SCHEMA_VERSION, FileLock, connect_writer
from trunkline_router.log.sqlite.forks import fork_all
from trunkline_router.log.sqlite.reapplied import Reapplied, is_successor
from trunkline_router.log.sqlite.verification import (
    SQLITE_ERRORS,
    entry_problems,
    is_corruption,
    log_problems,
    page_problems,
)

_COPY_BYTES = 4 << 20
_SUFFIXES = ("", "-wal")
_AUDIT = (
    "INSERT INTO audit (at_ms, tenant, actor, source, action, target, before, after)"
    " VALUES (?, '', 'operator', 'command line', 'Restore', ?, '', ?)"
)


@dataclass(slots=True)
class RestoreReport:
    """Result of a restore."""

    backup: Path
    #: The former log, under its new name; None if there was none.
    replaced: Path | None = None
    #: Logs that got a new epoch.
    logs: int = 0
    #: Revocations, deletions and erasures that were applied again.
    reapplied: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


def restore(
    path: Path, backup: Path, audit: Path | None, *, progress: Progress, data_keys: DataKeys | None = None
) -> RestoreReport:
    """Replace the log at `path` by a backup of it. No router may run.

    Every log gets a new epoch, and ids of the time since the backup are not given again. The former log is
    renamed, not deleted. `audit` holds audit entries as JSON lines. Of an encrypted log, users can be erased
    again only with its `data_keys`.

    Raises BackupFailed; the log is then as it was.
    """
    report = RestoreReport(backup)
    temporary = path.with_name(f"{path.name}.restore-{secrets.token_hex(6)}")
    entries = _load_audit(audit)
    try:
        create_private_folder(path.parent)
        with ExitStack() as undo:
            undo.callback(_delete, temporary)
            lock = FileLock(path)
            undo.callback(lock.release)
            for leftover in path.parent.glob(f"{escape(path.name)}.restore-*"):
                # Of a restore that was killed.
                leftover.unlink(missing_ok=True)
            manifest = _verify_file(backup, path, report)
            _copy(backup, temporary, progress)
            progress(0.5)
            state = _prepare(temporary, path, manifest, entries, report, data_keys)
            progress(0.9)
            _swap(temporary, path, state, report)
    except (LogUnavailable, DataKeyError) as error:
        raise BackupFailed(str(error)) from error
    except (*SQLITE_ERRORS, OSError) as error:
        raise BackupFailed(f"{backup}: {error}") from error
    progress(1)
    return report


def _load_audit(audit: Path | None) -> list[Mapping[str, Any]]:
    if audit is None:
        return []
    try:
        rows = [json.loads(row) for row in audit.read_text(encoding="utf-8").splitlines() if row.strip()]
        for row in rows:
            int(row["at_ms"]), str(row["action"]), str(row["tenant"]), str(row["target"])
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise BackupFailed(f"{audit} does not hold audit entries as JSON lines: {error!r}") from None
    return rows


def _verify_file(backup: Path, path: Path, report: RestoreReport) -> BackupManifest | None:
    if not backup.is_file():
        raise BackupFailed(f"{backup} does not exist")
    if backup.resolve() == path.resolve():
        raise BackupFailed(f"{backup} is the log itself")
    try:
        manifest = load_manifest(backup)
    except ValueError as error:
        raise BackupFailed(str(error)) from None
    if manifest is None:
        report.warnings.append(f"{backup} has no manifest: only its content was verified")
    elif sha256_of(backup) != manifest.sha256:
        raise BackupFailed(f"{backup} is not the file that its manifest describes: its SHA-256 differs")
    return manifest


def _copy(source: Path, target: Path, progress: Progress) -> None:
    """Copy a backup, or a log that a restore has replaced, with its write-ahead log."""
    wal = source.with_name(source.name + "-wal")
    if wal.exists() and wal.stat().st_size:
        create_private_file(target)
        with closing(connect_to_snapshot(source)) as db, closing(sqlite3.connect(target)) as copy:
            db.backup(copy)
        return
    size = max(source.stat().st_size, 1)
    with source.open("rb") as reading, open(target, "xb", opener=open_private) as writing:
        while chunk := reading.read(_COPY_BYTES):
            writing.write(chunk)
            progress(0.5 * writing.tell() / size)
        writing.flush()
        os.fsync(writing.fileno())


def _prepare(
    temporary: Path,
    path: Path,
    manifest: BackupManifest | None,
    entries: Sequence[Mapping[str, Any]],
    report: RestoreReport,
    data_keys: DataKeys | None,
) -> LogState:
    """Make a copy of the backup ready to take the place of the log at `path`."""
    with closing(connect_writer(temporary)) as db:
        # Upgraded to this version's schema by now.
        problems = page_problems(db, whole=False) or log_problems(db) or entry_problems(db)
        if problems:
            raise BackupFailed(f"the backup is damaged: {problems[0]}")
        backup_state = read_state(db)
        now_ms = time.time_ns() // 1_000_000
        reapplied = Reapplied(db, now_ms, data_keys)
        old_commits = _reapply_database(path, db, reapplied, report)
        since_ms = manifest.created_ms if manifest else 0
        reapplied.from_audit(entries, since_ms)
        if not entries and old_commits is None:
            report.warnings.append(
                "the log that is replaced cannot be used, and no --audit file was given: revocations, deleted"
                " keys and tenants, and erased users of the time since the backup are back unless you make"
                " these changes again"
            )
        report.reapplied = reapplied.done
        report.warnings += reapplied.open
        report.logs = fork_all(db)
        reapplied.mark_lost_logs()
        after = json.dumps(
            {"backup_ms": since_ms, "topics": report.logs, "applied_again": len(reapplied.done)}
        )
        db.execute(_AUDIT, (now_ms, report.backup.name, after))
        mark = read_mark(path)
        commits = 1 + max(backup_state.commits, old_commits or 0, mark.commits if mark else 0)
        write_commits(db, commits)
        db.commit()
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        return read_state(db)


def _reapply_database(
    path: Path, db: sqlite3.Connection, reapplied: Reapplied, report: RestoreReport
) -> int | None:
    """Take over what the log that is replaced knows. Returns its commits, or None if it is of no use."""
    if not path.exists():
        return None
    db.commit()
    try:
        with closing(connect_to_snapshot(path)) as old:
            if page_problems(old, whole=False):
                report.warnings.append(f"{path} is damaged: nothing was taken from it")
                return None
            if old.execute("PRAGMA user_version").fetchone()[0] != SCHEMA_VERSION:
                report.warnings.append(f"{path} has another schema version: nothing was taken from it")
                return None
            state = read_state(old)
            if not is_successor(old, db):
                report.warnings.append(f"{path} does not continue the backup: nothing was taken from it")
                return None
            mark = read_mark(path)
            if mark is not None and mark.log_id == state.log_id and mark.commits > state.commits:
                report.warnings.append(f"{path} lacks its last {mark.commits - state.commits} commits")
            reapplied.from_database(old)
            return state.commits
    except (*SQLITE_ERRORS, BackupFailed) as error:
        # Nothing half applied.
        db.rollback()
        reapplied.done.clear()
        reapplied.lost_logs.clear()
        report.warnings.append(f"{path} cannot be read ({error}): nothing was taken from it")
        return None


def _swap(temporary: Path, path: Path, state: LogState, report: RestoreReport) -> None:
    """Put the prepared file in place. A crash leaves the former log, whole, or the new one."""
    wal = path.with_name(path.name + "-wal")
    if path.exists() or wal.exists():
        stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
        report.replaced = path.with_name(f"{path.name}.replaced-{stamp}-{secrets.token_hex(2)}")
        for suffix in _SUFFIXES:
            source = path.with_name(path.name + suffix)
            if source.exists():
                _link(source, report.replaced.with_name(report.replaced.name + suffix))
        sync_folder(path.parent)
        _complete(path)
    wal.unlink(missing_ok=True)
    path.with_name(path.name + "-shm").unlink(missing_ok=True)
    temporary.rename(path)
    sync_folder(path.parent)
    mark = CommitMark(path, state.log_id)
    mark.write(state.commits)
    mark.sync()
    mark.close()


def _complete(path: Path) -> None:
    """Make a database whole without its write-ahead log. A damaged one stays as it is."""
    if not path.exists():
        return
    try:
        with closing(sqlite3.connect(path)) as db:
            db.execute("PRAGMA wal_checkpoint")
    except SQLITE_ERRORS as error:
        if not is_corruption(error):
            raise


def _link(source: Path, target: Path) -> None:
    """Give a file a second name, or copy it where there are no hard links."""
    try:
        target.hardlink_to(source)
    except OSError:
        shutil.copy2(source, target)


def _delete(temporary: Path) -> None:
    for suffix in (*_SUFFIXES, "-shm"):
        temporary.with_name(temporary.name + suffix).unlink(missing_ok=True)
