"""Reads and writes a log file for a copy."""

from __future__ import annotations

import asyncio
import json
import sqlite3
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar

from trunkline_runtime.private_files import create_private_folder

from trunkline_router.log.interface import LogUnavailable
from trunkline_router.log.migration.copied_log import (
    COPYING,
    PIECE_BYTES,
    PIECE_ROWS,
    CopyFailed,
    HighestIds,
    LogVersion,
    Piece,
    RowKey,
)
from trunkline_router.log.migration.copied_tables import (
    IDEMPOTENCY,
    CopiedTable,
    Row,
)
from trunkline_router.log.migration.copy_statements import (
    OF_EPOCH,
    CopyStatements,
    counting,
    deleting,
    deleting_all,
    selected,
    without_ordinals,
)
from trunkline_router.log.sqlite.commit_mark import (
    CommitMark,
    missing_commits,
    read_mark,
    read_state,
    write_commits,
)
from trunkline_router.log.sqlite.database_file import SCHEMA_VERSION, FileLock, connect_writer, version_of
from trunkline_router.log.sqlite.forks import NEW_COUNTER
from trunkline_router.log.sqlite.verification import SQLITE_ERRORS

_CREATE_STATE = (
    "CREATE TABLE IF NOT EXISTS copy_state"
    " (id INTEGER PRIMARY KEY CHECK (id = 1), state TEXT NOT NULL, commits INTEGER)"
)
_HAS_STATE = "SELECT EXISTS (SELECT 1 FROM sqlite_master WHERE name = 'copy_state')"
_SAVE = "INSERT OR REPLACE INTO copy_state VALUES (1, ?, ?)"
_LOAD = "SELECT state FROM copy_state WHERE commits IS NULL OR commits = (SELECT commits FROM log_state)"
_SET_ID = "UPDATE sqlite_sequence SET seq = max(seq, ?) WHERE name = ?"
_STATEMENTS = CopyStatements("user", "NOT INDEXED CROSS JOIN", "rowid")
_DELETE_RECENT_KEYS = f"DELETE FROM recent_keys WHERE {OF_EPOCH}"
#: Keys that have not moved to `idempotency`; one that is in both tables counts once.
_RECENT_KEYS = (
    "SELECT {0} FROM recent_keys AS r WHERE NOT EXISTS"
    " (SELECT 1 FROM idempotency AS moved WHERE moved.key = r.key) AND "
)
_SEQUENCES = ("topics", "deliveries", "audit")

_T = TypeVar("_T")


class CopiedFile:
    """Implements CopiedLog. Statements run in other threads, one at a time."""

    def __init__(self, path: Path, lock: FileLock, db: sqlite3.Connection) -> None:
        """Use `open_source` or `open_target`."""
        self._path = path
        self._lock = lock
        self._db = db

    @classmethod
    def open_source(cls, path: Path) -> CopiedFile:
        """Open a log that no router uses. Raises CopyFailed."""
        with _failures(path):
            if not path.is_file():
                raise CopyFailed(f"{path} does not exist")
            lock = FileLock(path)
            try:
                # Not read-only: the write-ahead log of a router that was killed may have to be recovered.
                db = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
                _check_source(db, path)
                return cls(path, lock, db)
            except BaseException:
                lock.release()
                raise

    @classmethod
    def open_target(cls, path: Path, *, may_create: bool) -> CopiedFile:
        """Open a log that no router uses; a missing file may be created. Raises CopyFailed."""
        with _failures(path):
            if not may_create and not path.is_file():
                raise CopyFailed(f"{path} does not exist")
            if not path.parent.exists():
                create_private_folder(path.parent)
            lock = FileLock(path)
            try:
                db = connect_writer(path, may_be_copying=True)
                db.isolation_level = None
                if version_of(db) < COPYING:
                    _check_commits(db, path)
                return cls(path, lock, db)
            except BaseException:
                lock.release()
                raise

    def describe(self) -> str:
        """See CopiedLog."""
        return str(self._path)

    async def version(self) -> LogVersion:
        """See CopiedLog."""
        state = await self._run(lambda: read_state(self._db))
        return LogVersion(state.log_id, str(state.commits))

    async def highest_ids(self) -> HighestIds:
        """See CopiedLog."""
        rows = await self._run(lambda: dict(self._db.execute("SELECT name, seq FROM sqlite_sequence")))
        return HighestIds(*[rows.get(name, 0) for name in _SEQUENCES])

    async def count(self, table: CopiedTable, tenant: str | None) -> int:
        """See CopiedLog."""
        parameters = {"tenant": tenant}
        query = counting(table, tenant)
        if table is IDEMPOTENCY:
            query = f"SELECT ({query}) + ({_recent_keys('count(*)', tenant)})"
        count: int = await self._run(lambda: self._db.execute(query, parameters).fetchone()[0])
        return count

    async def pieces(
        self, table: CopiedTable, tenant: str | None, after: RowKey | None
    ) -> AsyncGenerator[Piece]:
        """See CopiedLog."""
        query = _selecting(table, tenant, is_continued=after is not None)
        cursor = await self._run(lambda: self._db.execute(query, selected(tenant, after)))
        try:
            is_rowid = _STATEMENTS.key_of(table, tenant) != table.key
            keys = [table.column(each) for each in table.key]
            while rows := await self._run(lambda: _take(cursor)):
                last = (rows[-1][-1],) if is_rowid else tuple(rows[-1][each] for each in keys)
                yield Piece(_neutral(table, [row[:-1] for row in rows] if is_rowid else rows), last)
        finally:
            await self._run(cursor.close)

    async def load_state(self) -> str | None:
        """See CopiedLog."""
        return await self._run(lambda: _load_state(self._db))

    async def begin(self, state: str) -> None:
        """See CopiedLog."""

        def begin(db: sqlite3.Connection) -> None:
            db.execute(_CREATE_STATE)
            db.execute(_SAVE, (state, None))
            db.execute(f"PRAGMA user_version = {COPYING + SCHEMA_VERSION}")

        await self._commit(begin)

    async def write(self, table: CopiedTable, rows: Sequence[Row], state: str) -> None:
        """See CopiedLog."""

        def write(db: sqlite3.Connection) -> None:
            columns = _STATEMENTS.inserted_columns(table)
            values = ", ".join("?" * len(columns))
            db.executemany(
                f"INSERT INTO {table.name} ({', '.join(columns)}) VALUES ({values})", _native(table, rows)
            )
            db.execute(_SAVE, (state, None))

        await self._commit(write)

    async def delete(self, tenant: str | None, audit_id: int, log_key: int) -> None:
        """See CopiedLog."""
        parameters = {"tenant": tenant, "audit_id": audit_id, "log_key": log_key}

        def delete(db: sqlite3.Connection) -> None:
            for statement in deleting_all(tenant):
                db.execute(statement, parameters)
            if tenant is None:
                db.execute("DELETE FROM recent_keys")

        await self._commit(delete)

    async def delete_keys(self, tenant: str) -> None:
        """See CopiedLog."""

        def delete(db: sqlite3.Connection) -> None:
            for statement in (deleting(IDEMPOTENCY, tenant), _DELETE_RECENT_KEYS):
                db.execute(statement, {"tenant": tenant})

        await self._commit(delete)

    async def finish(self, ids: HighestIds, state: str, *, is_complete: bool) -> None:
        """See CopiedLog."""
        log = await self._run(lambda: read_state(self._db))
        commits = log.commits + 1

        def finish(db: sqlite3.Connection) -> None:
            for name, highest in zip(_SEQUENCES, ids, strict=True):
                db.execute(NEW_COUNTER, (name,))
                db.execute(_SET_ID, (highest, name))
            write_commits(db, commits)
            db.execute(_SAVE, (state, commits if is_complete else None))
            if is_complete:
                db.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")

        # The mark first: a database behind its mark would have lost commits, but nobody opens this one yet.
        with _failures(self._path):
            mark = CommitMark(self._path, log.log_id)
            mark.write(commits)
            mark.sync()
            mark.close()
        await self._commit(finish)

    async def forget(self) -> None:
        """See CopiedLog."""

        def forget(db: sqlite3.Connection) -> None:
            db.execute("DROP TABLE IF EXISTS copy_state")
            db.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")

        await self._commit(forget)

    async def aclose(self) -> None:
        """See CopiedLog."""
        with suppress(sqlite3.Error):
            self._db.close()
        self._lock.release()

    async def _commit(self, change: Callable[[sqlite3.Connection], None]) -> None:
        def commit() -> None:
            # A pragma does not begin a transaction by itself.
            self._db.execute("BEGIN IMMEDIATE")
            try:
                change(self._db)
                self._db.execute("COMMIT")
            except BaseException:
                with suppress(sqlite3.Error):
                    self._db.execute("ROLLBACK")
                raise

        await self._run(commit)

    async def _run(self, call: Callable[[], _T]) -> _T:
        with _failures(self._path):
            return await asyncio.to_thread(call)


def _recent_keys(columns: str, tenant: str | None) -> str:
    return _RECENT_KEYS.format(columns) + ("true" if tenant is None else OF_EPOCH)


def _selecting(table: CopiedTable, tenant: str | None, *, is_continued: bool) -> str:
    query = _STATEMENTS.selecting(table, tenant, is_continued=is_continued)
    if table is IDEMPOTENCY:
        recent = _recent_keys(", ".join(table.columns), tenant) + (" AND key > :k0" if is_continued else "")
        query = query.replace(" ORDER BY r.key", f" UNION ALL {recent} ORDER BY key")
    return query


def _take(cursor: sqlite3.Cursor) -> list[Row]:
    """Take the rows of a piece."""
    rows: list[Row] = []
    size = 0
    for row in cursor:
        rows.append(row)
        size += sum([len(value) for value in row if isinstance(value, bytes | str)])
        if len(rows) == PIECE_ROWS or size >= PIECE_BYTES:
            break
    return rows


def _neutral(table: CopiedTable, rows: list[Row]) -> list[Row]:
    """Turn rows of this engine into those of all."""
    if table.name == "api_keys":
        return [(*row[:4], tuple(json.loads(row[4])), *row[5:]) for row in rows]
    return rows


def _native(table: CopiedTable, rows: Sequence[Row]) -> Sequence[Row]:
    """Turn rows of all engines into those of this one."""
    if table.name == "api_keys":
        return [(*row[:4], json.dumps(row[4]), *row[5:]) for row in rows]
    return without_ordinals(table, rows)


@contextmanager
def _failures(path: Path) -> Iterator[None]:
    try:
        yield
    except LogUnavailable as error:
        raise CopyFailed(str(error)) from error
    except (*SQLITE_ERRORS, OSError) as error:
        raise CopyFailed(f"{path}: {error}") from error


def _check_source(db: sqlite3.Connection, path: Path) -> None:
    version = version_of(db)
    if version >= COPYING:
        raise CopyFailed(f"{path} holds an unfinished copy")
    if version > SCHEMA_VERSION:
        raise CopyFailed(f"{path} has schema version {version}: use the version of Trunkline that wrote it")
    if version != SCHEMA_VERSION:
        raise CopyFailed(
            f"{path} has schema version {version}, not {SCHEMA_VERSION}: start a router of this version once"
        )
    db.execute("PRAGMA query_only = ON")
    _check_commits(db, path)


def _check_commits(db: sqlite3.Connection, path: Path) -> None:
    """Raise CopyFailed for a log whose positions are not to be trusted."""
    if missing_commits(read_state(db), read_mark(path)) is not None:
        raise CopyFailed(
            f"{path} is a backup, or has lost commits: `trunkline-router restore` it, or start a router on it"
            " once, so that clients notice what was lost"
        )


def _load_state(db: sqlite3.Connection) -> str | None:
    if not db.execute(_HAS_STATE).fetchone()[0]:
        return None
    found: tuple[str] | None = db.execute(_LOAD).fetchone()
    return found[0] if found else None
