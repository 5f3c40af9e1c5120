"""The SQLite log's writing half. Everything here runs on the log's one writer thread."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from trunkline_router.core.values.log_records import (
    Cursor,
    ErasedPiece,
    HistoryLimits,
    Registration,
    StoredDelivery,
)
from trunkline_router.core.values.topics import TopicKey
from trunkline_router.log.batch import Batch, Head, Numbers
from trunkline_router.log.interface import LogUnavailable
from trunkline_router.log.sqlite.batch_writer import write_batch
from trunkline_router.log.sqlite.database_file import connect_writer
from trunkline_router.log.sqlite.delivery_rows import replay
from trunkline_router.log.sqlite.erasure import erase_tenant, erase_user, reset
from trunkline_router.log.sqlite.idempotency_keys import IdempotencyKeys, StoredResult, keys_of
from trunkline_router.log.sqlite.pruning import prune
from trunkline_router.log.sqlite.statements import look_up_heads
from trunkline_router.log.sqlite.sweeper import delete_erased
from trunkline_router.log.sqlite.tenant_rows import write_registration


class Writer:
    """The one connection that writes.

    After any failure the connection is given up, and the next call makes a new one, if the fault is
    gone. Every method may raise LogUnavailable, and has then changed nothing.
    """

    def __init__(self, path: Path, recent_keys: int) -> None:
        """`recent_keys` is the number of keys that are put in order together."""
        self._path = path
        db = connect_writer(path)
        self._db: sqlite3.Connection | None = db
        self._keys = IdempotencyKeys(db, recent_keys)

    def numbers(self) -> Numbers:
        """The highest numbers ever given out, as of the last commit."""
        with self._transaction() as db:
            highest = dict(db.execute("SELECT name, seq FROM sqlite_sequence"))
            key_id = db.execute("SELECT max(id) FROM recent_keys").fetchone()[0] or 0
            return Numbers(highest.get("topics", 0), highest.get("deliveries", 0), key_id)

    def heads(self, topics: Sequence[TopicKey]) -> list[Head]:
        """The heads of these topics, in order."""
        with self._transaction() as db:
            return look_up_heads(db, topics)

    def commit(self, batch: Batch) -> dict[bytes, StoredResult]:
        """Write a batch; it is on disk on return.

        If keys of it were used before, nothing is written, and what is kept of them is returned.
        """
        with self._transaction() as db:
            if batch.keys:
                used = self._keys.used(db, keys_of(batch.keys))
                if used:
                    return used
                self._keys.add(db, batch.keys)
            write_batch(db, batch)
        return {}

    def kept(self, keys: list[bytes]) -> dict[bytes, StoredResult]:
        """What is kept of these keys, those that were used before."""
        with self._transaction() as db:
            return self._keys.used(db, keys)

    def reset(self, topic: TopicKey) -> int:
        """Erase a log; returns how many messages it held."""
        with self._transaction() as db:
            messages = reset(db, topic)
            delete_erased(db)
            return messages

    def erase_tenant(self, tenant: str) -> ErasedPiece:
        """Erase some of a tenant's logs, or the rest of it."""
        with self._transaction() as db:
            return erase_tenant(db, tenant)

    def erase_user(self, tenant: str, user: str, cursor: Cursor | None, now_ms: int) -> ErasedPiece:
        """Erase some of what a user has in a tenant's logs."""
        with self._transaction() as db:
            return erase_user(db, tenant, user, cursor, now_ms)

    def prune(self, tenant: str, limits: HistoryLimits, cursor: Cursor | None, now_ms: int) -> ErasedPiece:
        """Erase the beginning of some of a tenant's logs."""
        with self._transaction() as db:
            return prune(db, tenant, limits, cursor, now_ms)

    def register(self, change: Registration) -> None:
        """Write a change of tenants, API keys and revocations."""
        with self._transaction() as db:
            write_registration(db, change)

    def replay(
        self, tenant: str, agent: str, first: int, delivery_ids: Sequence[int]
    ) -> list[StoredDelivery]:
        """Make dead letters deliveries again, with ids from `first` on, which must be new."""
        with self._transaction() as db:
            return replay(db, tenant, agent, first, delivery_ids)

    def sweep(self, created_before_ms: int) -> None:
        """Delete some of the keys made before a time, and some rows of erased logs."""
        with self._transaction() as db:
            delete_erased(db)
            self._keys.expire(db, created_before_ms)

    def close(self) -> None:
        """Release the connection."""
        if self._db is not None:
            db, self._db = self._db, None
            db.close()

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        try:
            if self._db is None:
                self._db = self._reconnect()
            yield self._db
            self._db.commit()
        except sqlite3.Error as error:
            self._give_up()
            raise LogUnavailable(f"{self._path}: {error}") from error
        except BaseException:
            self._give_up()
            raise

    def _give_up(self) -> None:
        """Close the connection, which rolls back what is open."""
        with suppress(sqlite3.Error):
            self.close()

    def _reconnect(self) -> sqlite3.Connection:
        """Connect after a failure.

        A commit whose fsync failed may have left all its frames in the WAL. Nobody sees them, but
        recovery after a crash would. Emptying the WAL takes them away before anything else is written.
        """
        db = connect_writer(self._path)
        try:
            busy = db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]
            if busy:
                raise LogUnavailable(
                    f"{self._path}: the write-ahead log cannot be emptied: a reader is in the way"
                )
            self._keys.load(db)
        except BaseException:
            db.close()
            raise
        return db
