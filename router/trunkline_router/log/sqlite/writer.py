"""The writing connection. Everything here runs on the log's writer thread."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import structlog

from trunkline_router.core.values.log_records import Cursor, ErasedPiece, HistoryLimits
from trunkline_router.core.values.stored_records import Registration, StoredDelivery
from trunkline_router.core.values.topics import TopicKey
from trunkline_router.log.append_results import StoredResult
from trunkline_router.log.batch import Batch, Head, IdCounters
from trunkline_router.log.data_keys import DataKeys
from trunkline_router.log.encryption import Encryption
from trunkline_router.log.erasure_plan import SEARCHED_ENTRIES
from trunkline_router.log.interface import LogUnavailable
from trunkline_router.log.sqlite.batch_writer import write_batch
from trunkline_router.log.sqlite.commit_mark import (
    CommitMark,
    LogState,
    missing_commits,
    read_mark,
    read_state,
    write_commits,
)
from trunkline_router.log.sqlite.database_file import BUSY_TIMEOUT_MS, cancel_long_reads, connect_writer
from trunkline_router.log.sqlite.delivery_rows import replay
from trunkline_router.log.sqlite.erasure import erase_tenant, erase_user, reset
from trunkline_router.log.sqlite.forks import fork_all
from trunkline_router.log.sqlite.idempotency_keys import IdempotencyKeys, keys_of
from trunkline_router.log.sqlite.key_store import KeyStore
from trunkline_router.log.sqlite.pruning import prune
from trunkline_router.log.sqlite.statements import look_up_heads
from trunkline_router.log.sqlite.sweeper import delete_erased, expire_cancelled
from trunkline_router.log.sqlite.tenant_rows import write_registration
from trunkline_router.log.sqlite.verification import SQLITE_ERRORS, quick_problems
from trunkline_router.log.stored_values import StoredValues

_log = structlog.get_logger()

#: Time for which a start checks the file's pages: 1 GiB takes about 10 s.
QUICK_CHECK_S = 2.0
#: Time that commits wait for readers before the WAL is emptied.
_EMPTY_WAL_WAIT_MS = 100


class Writer:
    """The one connection that writes.

    A failure closes the connection; the next call opens a new one. Every method may raise LogUnavailable
    and has then changed nothing.
    """

    def __init__(
        self,
        path: Path,
        recent_keys: int,
        values: StoredValues,
        encryption: Encryption,
        now_ms: Callable[[], int],
    ) -> None:
        """Open the file; `recent_keys` idempotency keys move to their final table together."""
        self._path = path
        self._values = values
        self._encryption = encryption
        self._key_store = KeyStore(encryption, self._transaction, now_ms)
        db = connect_writer(path)
        self._db: sqlite3.Connection | None = db
        try:
            self._check_pages(db)
            self._keys = IdempotencyKeys(db, recent_keys)
            state = read_state(db)
            mark = read_mark(path)
            self._commits = state.commits
            self._mark = CommitMark(path, state.log_id)
        except BaseException:
            db.close()
            raise
        if (missing := missing_commits(state, mark)) is not None:
            self._fork(missing, mark)
        self._mark.write(self._commits)
        self._mark.sync()

    def _check_pages(self, db: sqlite3.Connection) -> None:
        """Raise LogUnavailable if SQLite finds a damaged page within a moment."""
        problems = quick_problems(db, QUICK_CHECK_S)
        if problems is None:
            _log.info(
                "checked only a part of the log; `trunkline-router check` checks all", seconds=QUICK_CHECK_S
            )
        elif problems:
            raise LogUnavailable(
                f"{self._path} is damaged ({problems[0]}); restore a backup, or see `trunkline-router check`"
            )

    def _fork(self, missing: int, mark: LogState | None) -> None:
        """Begin new epochs, since commits were lost."""
        with self._transaction() as db:
            logs = fork_all(db)
            self._commits = max(self._commits, mark.commits if mark else 0)
            log_id = read_state(db).log_id
        self._mark.close()
        self._mark = CommitMark(self._path, log_id)
        _log.error(
            "the log has lost commits, as if an older copy was put in place: clients get `recovered: false`;"
            " revocations, erasures and settings made since must be made again",
            path=str(self._path),
            missing_commits=missing or "unknown",
            logs=logs,
        )

    def open_keys(self) -> None:
        """Load the tenants' keys and encrypt what must be; call once. Raises DataKeyError."""
        if self._key_store.open():
            self._empty_wal()

    def counters(self) -> IdCounters:
        """Return the highest ids ever assigned, as of the last commit."""
        with self._transaction() as db:
            highest = dict(db.execute("SELECT name, seq FROM sqlite_sequence"))
            key_id = db.execute("SELECT max(id) FROM recent_keys").fetchone()[0] or 0
            return IdCounters(highest.get("topics", 0), highest.get("deliveries", 0), key_id)

    def heads(self, topics: Sequence[TopicKey]) -> list[Head]:
        """Read the heads of these topics, in order."""
        with self._transaction() as db:
            return look_up_heads(db, topics)

    def commit(self, batch: Batch) -> dict[bytes, StoredResult]:
        """Commit a batch; it is on disk on return.

        If any of its idempotency keys is in use, nothing is written, and their results are returned.
        """
        self._key_store.seal_batch(batch)
        if batch.is_older_copy:
            self._mark.distrust()
        with self._transaction() as db:
            if batch.keys:
                used = self._keys.used(db, keys_of(batch.keys))
                if used:
                    return used
                self._keys.add(db, batch.keys)
            write_batch(db, batch)
        return {}

    def results(self, keys: Sequence[bytes]) -> dict[bytes, StoredResult]:
        """Return the results stored for those of these keys that are in use."""
        with self._transaction() as db:
            return self._keys.used(db, list(keys))

    def reset(self, topic: TopicKey) -> int:
        """Erase a log. Returns the number of its messages."""
        with self._transaction() as db:
            messages = reset(db, topic)
            delete_erased(db)
            return messages

    def erase_tenant(self, tenant: str) -> ErasedPiece:
        """Erase some of a tenant's logs, or the tenant's own rows once no log is left."""
        with self._transaction() as db:
            piece = erase_tenant(db, tenant)
        if piece.cursor is None and self._encryption.data_keys is not None:
            self._encryption.forget(tenant)
            # It contains the tenant's keys.
            self._empty_wal()
        return piece

    def erase_user(self, tenant: str, user: str, cursor: Cursor | None, now_ms: int) -> ErasedPiece:
        """Erase some of a user's entries."""
        if self._encryption.data_keys is not None:
            self._key_store.reserve([tenant], 2 * SEARCHED_ENTRIES)
        with self._transaction() as db:
            return erase_user(db, tenant, user, cursor, now_ms, self._encryption)

    def prune(self, tenant: str, limits: HistoryLimits, cursor: Cursor | None, now_ms: int) -> ErasedPiece:
        """Erase the beginnings of some of a tenant's logs."""
        with self._transaction() as db:
            return prune(db, tenant, limits, cursor, now_ms)

    def register(self, change: Registration) -> None:
        """Write a change of tenants, API keys and revocations."""
        tenants = self._key_store.seal_registration(change)
        with self._transaction() as db:
            write_registration(db, change, tenants)
        self._key_store.registered(change)

    def rewrap(self, data_keys: DataKeys) -> int:
        """Wrap the tenants' keys by the current data key. Returns the number of keys that were not."""
        return self._key_store.rewrap(data_keys)

    def replay(
        self, tenant: str, agent: str, first: int, delivery_ids: Sequence[int]
    ) -> list[StoredDelivery]:
        """Turn dead letters into deliveries with ids from `first` on, which must be new."""
        with self._transaction() as db:
            return replay(db, tenant, agent, first, delivery_ids, self._values)

    def sweep(self, created_before_ms: int) -> None:
        """Delete some idempotency keys and marks of cancelled messages created before a time.

        Deletes some rows of erased logs, too.
        """
        with self._transaction() as db:
            delete_erased(db)
            expire_cancelled(db, created_before_ms)
            self._keys.expire(db, created_before_ms)

    def close(self) -> None:
        """Close the connection."""
        if self._db is not None:
            db, self._db = self._db, None
            db.close()

    def release(self) -> None:
        """Close the connection for good."""
        self.close()
        self._mark.sync()
        self._mark.close()

    def _empty_wal(self) -> None:
        """Move the WAL into the database and truncate it, unless a reader keeps it."""
        if self._db is None:
            return
        with suppress(sqlite3.Error):
            self._db.execute(f"PRAGMA busy_timeout = {_EMPTY_WAL_WAIT_MS}")
            self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            self._db.execute(f"PRAGMA busy_timeout = {BUSY_TIMEOUT_MS}")

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        try:
            if self._db is None:
                self._db = self._reconnect()
            db = self._db
            before = db.total_changes
            yield db
            if db.total_changes == before:
                db.commit()
            else:
                write_commits(db, self._commits + 1)
                db.commit()
                self._commits += 1
                self._mark.write(self._commits)
        except SQLITE_ERRORS as error:
            self._discard()
            raise LogUnavailable(f"{self._path}: {error}") from error
        except BaseException:
            self._discard()
            raise

    def _discard(self) -> None:
        """Close the connection, which rolls back its transaction."""
        with suppress(sqlite3.Error):
            self.close()

    def _reconnect(self) -> sqlite3.Connection:
        """Connect after a failure.

        A commit whose fsync failed may have left its frames in the WAL. No reader sees them, but recovery
        after a crash would. Emptying the WAL removes them before anything else is written.
        """
        db = connect_writer(self._path)
        try:
            busy = db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]
            if busy:
                cancel_long_reads(self._path)
                raise LogUnavailable(f"{self._path}: a reader keeps the write-ahead log from being emptied")
            self._keys.load(db)
            self._commits = read_state(db).commits
        except BaseException:
            db.close()
            raise
        return db
