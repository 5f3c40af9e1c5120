"""The SQLite log's writing half. Everything here runs on the log's one writer thread."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from router.core.topics import TopicKey
from router.log.port import LogUnavailable
from router.log.sqlite_batch import Batch, Head, Numbers
from router.log.sqlite_file import connect_writer
from router.log.sqlite_statements import Insert, Select, look_up_heads

#: Rows a sweep looks at, and messages of an erased log it deletes: some ten milliseconds in all.
_SWEEP_KEYS = 10_000
_SWEEP_MESSAGES = 2_000

_INSERT_TOPICS = Insert("topics", ("topic_id", "tenant", "agent", "platform", "kind", "target", "epoch"))
_INSERT_MESSAGES = Insert("messages", ("topic_id", "seq", "created_ms", "role", "author_user", "body"))
_INSERT_KEYS = Insert("idempotency", ("key", "digest", "epoch", "seq", "connections", "created_ms"))
_INSERT_DELIVERIES = Insert("deliveries", ("delivery_id", "tenant", "agent", "topic_id", "seq"))
_SELECT_KEYS = Select(
    "hex(key), hex(digest), epoch, seq, connections", "CROSS JOIN idempotency ON key = column1", 1
)
_DELETE_SETTLED = "DELETE FROM deliveries WHERE delivery_id IN (SELECT value FROM json_each(?))"
_KEY_COLUMNS = 6


class Kept(NamedTuple):
    """What is kept of the first message with a key."""

    digest: bytes
    epoch: str
    seq: int
    connections: int


class Writer:
    """The one connection that writes.

    After any failure the connection is given up, and the next call makes a new one, if the fault is
    gone. Every method may raise LogUnavailable, and has then changed nothing.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._sweep_after = b""
        self._db: sqlite3.Connection | None = connect_writer(path)

    def numbers(self) -> Numbers:
        """The highest numbers ever given out, as of the last commit."""
        with self._transaction() as db:
            highest = dict(db.execute("SELECT name, seq FROM sqlite_sequence"))
            return Numbers(highest.get("topics", 0), highest.get("deliveries", 0))

    def heads(self, topics: Sequence[TopicKey]) -> list[Head]:
        """The heads of these topics, in order."""
        with self._transaction() as db:
            return look_up_heads(db, topics)

    def commit(self, batch: Batch) -> dict[bytes, Kept]:
        """Write a batch; it is on disk on return.

        If keys of it were used before, nothing is written, and what is kept of them is returned.
        """
        with self._transaction() as db:
            try:
                _INSERT_KEYS.run(db, batch.keys)
            except sqlite3.IntegrityError:
                db.rollback()
                kept = _kept(db, batch.keys[::_KEY_COLUMNS])
                if not kept:
                    raise
                return kept
            if batch.settled:
                db.execute(_DELETE_SETTLED, (json.dumps(list(batch.settled)),))
            _INSERT_TOPICS.run(db, batch.topics)
            _INSERT_MESSAGES.run(db, batch.messages)
            _INSERT_DELIVERIES.run(db, batch.deliveries)
        return {}

    def kept(self, keys: list[bytes]) -> dict[bytes, Kept]:
        """What is kept of these keys, those that were used before."""
        with self._transaction() as db:
            return _kept(db, keys)

    def reset(self, topic: TopicKey) -> int:
        """Erase a log; returns how many messages it held.

        They are out of everyone's sight at once; the rows of a long log are deleted by later sweeps, so
        that nobody's append waits for it.
        """
        with self._transaction() as db:
            head = look_up_heads(db, [topic])[0]
            db.execute("DELETE FROM topics WHERE topic_id = ?", (head.topic_id,))
            db.execute(
                "DELETE FROM deliveries WHERE tenant = ? AND agent = ? AND topic_id = ?",
                (topic[0], topic[1], head.topic_id),
            )
            if head.topic_id:
                db.execute("INSERT INTO erased (topic_id) VALUES (?)", (head.topic_id,))
                _delete_erased(db)
            return head.position.seq

    def sweep(self, created_before_ms: int) -> None:
        """Delete some of the keys made before a time, and some messages of erased logs.

        Each call looks at the next piece of the key space, so that no index by time is needed.
        """
        with self._transaction() as db:
            _delete_erased(db)
            last = db.execute(
                "SELECT max(key) FROM (SELECT key FROM idempotency WHERE key > ? ORDER BY key LIMIT ?)",
                (self._sweep_after, _SWEEP_KEYS),
            ).fetchone()[0]
            if last is not None:
                db.execute(
                    "DELETE FROM idempotency WHERE key > ? AND key <= ? AND created_ms < ?",
                    (self._sweep_after, last, created_before_ms),
                )
            self._sweep_after = last or b""

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
        except BaseException:
            db.close()
            raise
        return db


def _kept(db: sqlite3.Connection, keys: list[bytes]) -> dict[bytes, Kept]:
    rows = _SELECT_KEYS.run(db, keys)
    return {bytes.fromhex(key): Kept(bytes.fromhex(digest), *rest) for key, digest, *rest in rows}


def _delete_erased(db: sqlite3.Connection) -> None:
    row = db.execute("SELECT min(topic_id) FROM erased").fetchone()
    if row[0] is None:
        return
    deleted = db.execute(
        "DELETE FROM messages WHERE rowid IN (SELECT rowid FROM messages WHERE topic_id = ? LIMIT ?)",
        (row[0], _SWEEP_MESSAGES),
    ).rowcount
    if deleted < _SWEEP_MESSAGES:
        db.execute("DELETE FROM erased WHERE topic_id = ?", row)
