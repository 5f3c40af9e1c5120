"""The SQLite log's writing half. Everything here runs on the log's one writer thread."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from router.core.topics import TopicKey
from router.log.port import LogUnavailable
from router.log.sqlite_batch import Batch, Head, Numbers
from router.log.sqlite_file import connect_writer
from router.log.sqlite_keys import Kept, Keys, keys_of
from router.log.sqlite_statements import Insert, look_up_heads

#: Messages of an erased log that a sweep deletes.
_SWEEP_MESSAGES = 2_000

_INSERT_TOPICS = Insert("topics", ("topic_id", "tenant", "agent", "platform", "kind", "target", "epoch"))
_INSERT_MESSAGES = Insert("messages", ("topic_id", "seq", "created_ms", "role", "author_user", "body"))
_INSERT_DELIVERIES = Insert("deliveries", ("delivery_id", "tenant", "agent", "topic_id", "seq"))
_DELETE_SETTLED = "DELETE FROM deliveries WHERE delivery_id IN (SELECT value FROM json_each(?))"


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
        self._keys = Keys(db, recent_keys)

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

    def commit(self, batch: Batch) -> dict[bytes, Kept]:
        """Write a batch; it is on disk on return.

        If keys of it were used before, nothing is written, and what is kept of them is returned.
        """
        with self._transaction() as db:
            if batch.keys:
                used = self._keys.used(db, keys_of(batch.keys))
                if used:
                    return used
                self._keys.add(db, batch.keys)
            if batch.settled:
                db.execute(_DELETE_SETTLED, (json.dumps(list(batch.settled)),))
            _INSERT_TOPICS.run(db, batch.topics)
            _INSERT_MESSAGES.run(db, batch.messages)
            _INSERT_DELIVERIES.run(db, batch.deliveries)
        return {}

    def kept(self, keys: list[bytes]) -> dict[bytes, Kept]:
        """What is kept of these keys, those that were used before."""
        with self._transaction() as db:
            return self._keys.used(db, keys)

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
        """Delete some of the keys made before a time, and some messages of erased logs."""
        with self._transaction() as db:
            _delete_erased(db)
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
