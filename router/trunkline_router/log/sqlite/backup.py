"""Backs up a log file while a router writes to it: a consistent, verified copy as of one moment."""

from __future__ import annotations

import fcntl
import os
import secrets
import shutil
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, nullcontext, suppress
from glob import escape
from pathlib import Path

from trunkline_runtime.folder_sync import sync_folder
from trunkline_runtime.private_files import open_private

from trunkline_router.log.backup_manifest import BackupManifest, manifest_path, sha256_of
from trunkline_router.log.interface import BackupFailed
from trunkline_router.log.sqlite.commit_mark import mark_path
from trunkline_router.log.sqlite.database_file import (
    BACKUP_SUFFIX,
    CHECK_SUFFIX,
    SCHEMA_VERSION,
    connect_to_copy,
)
from trunkline_router.log.sqlite.verification import (
    HANDLER_STEPS,
    SQLITE_ERRORS,
    entry_problems,
    is_interrupt,
    log_problems,
    page_problems,
    totals_of,
)

#: Pages copied in one step, and the pause after each: the router's reads and writes go first.
STEP_PAGES = 2_000
STEP_PAUSE_S = 0.01
#: Size of the WAL beyond which a backup or a check gives up: its snapshot keeps the router from emptying it.
MAX_WAL_BYTES = 1 << 30
#: Space that must stay free beside the copy.
SPARE_BYTES = 64 << 20

#: Called with the share that is done, from 0 to 1.
Progress = Callable[[float], None]


def back_up(source: Path, target: Path, *, force: bool, progress: Progress) -> BackupManifest:
    """Copy the log at `source` to `target`, verify the copy and write its manifest beside it.

    The copy is one file that needs no write-ahead log, readable by its owner only. It appears under its name
    once it is whole, verified and on disk; an existing file is replaced only with `force`.

    Raises BackupFailed, and has then left nothing behind.
    """
    target = target.absolute()
    if target.exists() and not force:
        raise BackupFailed(f"{target} exists already; --force replaces it")
    if not target.parent.is_dir():
        raise BackupFailed(f"the folder {target.parent} does not exist")
    if target.resolve() == source.resolve():
        raise BackupFailed("the backup needs a path of its own")
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(6)}")
    written = manifest_path(temporary)
    try:
        with _exclusive(source, BACKUP_SUFFIX) as is_cancelled:
            _delete_leftovers(target)
            created_ms = _copy(source, temporary, Watch(source, is_cancelled), progress)
        manifest = _verified(temporary, created_ms)
        _create(written, manifest.to_json().encode())
        with suppress(FileNotFoundError):
            manifest_path(target).unlink()
        temporary.rename(target)
        written.rename(manifest_path(target))
        sync_folder(target.parent)
    except (*SQLITE_ERRORS, OSError) as error:
        raise BackupFailed(f"{target}: {error}") from error
    finally:
        for path in (temporary, written, temporary.with_name(temporary.name + "-journal")):
            path.unlink(missing_ok=True)
    progress(1)
    return manifest


class Watch:
    """Ends a long read of a running router's file before it harms the router. Call it every now and then."""

    def __init__(self, source: Path, is_cancelled: Callable[[], bool] = lambda: False) -> None:
        self._wal = source.with_name(source.name + "-wal")
        self._is_cancelled = is_cancelled

    def __call__(self) -> None:
        """Raise BackupFailed if the WAL has grown too large, or the router needs it emptied."""
        if self._is_cancelled():
            raise BackupFailed("the router had to reopen its log, which a long read prevents; try again")
        with suppress(FileNotFoundError):
            size = self._wal.stat().st_size
            if size > MAX_WAL_BYTES:
                raise BackupFailed(
                    f"{self._wal} has grown to {size >> 20} MiB, as the router writes faster than the file is"
                    " read; try again when less is written"
                )

    def over(self, db: sqlite3.Connection) -> None:
        """Watch the statements of a connection, which fail as interrupted; `check` then says why."""
        db.set_progress_handler(self._must_end, HANDLER_STEPS)

    def _must_end(self) -> bool:
        try:
            self()
        except BackupFailed:
            return True
        return False


def connect_to_snapshot(source: Path) -> sqlite3.Connection:
    """Open a log read-only and pin a snapshot of it. The router, if one runs, is not disturbed.

    Raises BackupFailed if there is none, and sqlite3.Error.
    """
    if not source.exists():
        raise BackupFailed(f"{source} does not exist")
    db = sqlite3.connect(f"{source.resolve().as_uri()}?mode=ro", uri=True, isolation_level=None)
    try:
        # Without it, each commit of the router would make the backup start over.
        db.execute("BEGIN")
        db.execute("SELECT count(*) FROM sqlite_master").fetchone()
    except BaseException:
        db.close()
        raise
    return db


@contextmanager
def _exclusive(source: Path, suffix: str) -> Iterator[Callable[[], bool]]:
    """Let one backup, or check, of a log run at a time. Yields whether the router has cancelled it.

    The router cancels by deleting the file with this suffix; see Writer.
    """
    path = source.with_name(source.name + suffix)
    if not source.exists():
        raise BackupFailed(f"{source} does not exist")
    fd = open_private(path, os.O_RDWR | os.O_CREAT)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise BackupFailed(f"another {suffix[1:]} of {source} is running") from None
        try:
            yield lambda: not path.exists()
        finally:
            path.unlink(missing_ok=True)
    finally:
        os.close(fd)


def _delete_leftovers(target: Path) -> None:
    """Delete the files of backups to this target that were killed."""
    for path in target.parent.glob(f".{escape(target.name)}.{'[0-9a-f]' * 12}*"):
        path.unlink(missing_ok=True)


def _copy(source: Path, temporary: Path, watch: Watch, progress: Progress) -> int:
    """Copy a snapshot, durably. Returns its Unix time in ms."""
    with closing(connect_to_snapshot(source)) as db:
        created_ms = time.time_ns() // 1_000_000
        size = db.execute(
            "SELECT page_count * page_size FROM pragma_page_count, pragma_page_size"
        ).fetchone()[0]
        free = shutil.disk_usage(temporary.parent).free
        if free < size + SPARE_BYTES:
            raise BackupFailed(
                f"{temporary.parent} has {free >> 20} MiB free, and the backup needs"
                f" {size + SPARE_BYTES >> 20}"
            )
        _create(temporary)

        def step(status: int, remaining: int, total: int) -> None:
            watch()
            progress(0.9 * (1 - remaining / max(total, 1)))
            if remaining:
                time.sleep(STEP_PAUSE_S)

        with closing(sqlite3.connect(temporary, isolation_level=None)) as copy:
            # Synced once, at the end.
            copy.execute("PRAGMA synchronous = OFF")
            db.backup(copy, pages=STEP_PAGES, progress=step)
            # One file, which may be read where nothing can be written.
            copy.execute("PRAGMA journal_mode = DELETE")
    with temporary.open("rb") as file:
        os.fsync(file.fileno())
    return created_ms


def _verified(path: Path, created_ms: int) -> BackupManifest:
    """Verify a copy and describe it. Raises BackupFailed if the log is damaged."""
    with closing(connect_to_copy(path)) as copy:
        version = copy.execute("PRAGMA user_version").fetchone()[0]
        problems = page_problems(copy, whole=False)
        if not problems and version == SCHEMA_VERSION:
            problems = log_problems(copy) or entry_problems(copy)
        if problems:
            raise BackupFailed(f"the log is damaged, see `trunkline-router check`: {problems[0]}")
        if version != SCHEMA_VERSION:
            raise BackupFailed(
                f"the log has schema version {version}, not {SCHEMA_VERSION}: start a router of this version"
                " once, or back up with the version that wrote it"
            )
        totals = totals_of(copy)
    return BackupManifest(path.stat().st_size, sha256_of(path), version, created_ms, *totals)


def _create(path: Path, content: bytes = b"") -> None:
    """Create a file that only its owner can read, durably."""
    fd = open_private(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
    try:
        os.write(fd, content)
        os.fsync(fd)
    finally:
        os.close(fd)


def check_file(source: Path) -> list[str]:
    """Verify the whole of a log, as of one moment. Returns its problems. Raises BackupFailed."""
    is_log = mark_path(source).exists()
    try:
        with _exclusive(source, CHECK_SUFFIX) if is_log else nullcontext(lambda: False) as is_cancelled:
            return _check(source, Watch(source, is_cancelled))
    except OSError as error:
        raise BackupFailed(f"{source}: {error}") from error


def _check(source: Path, watch: Watch) -> list[str]:
    try:
        with closing(connect_to_snapshot(source)) as db:
            watch.over(db)
            version = db.execute("PRAGMA user_version").fetchone()[0]
            problems = page_problems(db, whole=True)
            if version != SCHEMA_VERSION:
                return [*problems, f"schema version {version} is not this version's, {SCHEMA_VERSION}"]
            return problems or log_problems(db) + entry_problems(db)
    except sqlite3.OperationalError as error:
        if is_interrupt(error):
            watch()
        raise BackupFailed(f"cannot read {source}: {error}") from error
    except SQLITE_ERRORS as error:
        return [str(error)]
