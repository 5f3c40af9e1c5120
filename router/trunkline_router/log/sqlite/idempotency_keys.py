"""The SQLite log's idempotency keys: which were used before, and what is kept of each.

Keys are random, so a table in their order is written all over: a page for each key. So new keys go to the end
of `recent_keys`, and a dict finds them there. When there are many, they are carried over into `idempotency`
in their order, a piece with each commit; then a page takes all the keys that belong on it at once.
"""

from __future__ import annotations

import json
import sqlite3
from typing import Any, NamedTuple

from trunkline_router.log.sqlite.statements import Insert, Select

#: How many recent keys are carried over together. Until that is done, half as many more arrive at most,
#: each some 160 bytes in memory.
RECENT_KEYS = 50_000
#: Commits that it takes at most; with more and smaller pieces, more pages would be written twice.
_PIECES = 200
#: Rows of each table that an `expire` looks at.
_LOOKED_AT = 10_000
_LOOKED_AT_RECENT = 2_000

_COLUMNS = "key, digest, epoch, seq, connections, created_ms"
#: Of a row to be inserted.
_ROW_ID, _ROW_KEY, _ROW_WIDTH = 0, 1, 7

_INSERT = Insert("recent_keys", ("id", *_COLUMNS.split(", ")))
_KEPT = "hex(key), hex(digest), epoch, seq, connections"
_SELECT_RECENT = Select(_KEPT, "$rows CROSS JOIN recent_keys ON id = column1", 1)
_SELECT_OLD = Select(_KEPT, "$rows CROSS JOIN idempotency ON key = column1", 1)
#: CROSS JOIN: in the order of the ids given, which is that of their keys. OR IGNORE: what was carried over
#: before a restart is so again.
_MOVE = (
    f"INSERT OR IGNORE INTO idempotency ({_COLUMNS})"
    f" SELECT {_COLUMNS} FROM (SELECT value FROM json_each(?)) CROSS JOIN recent_keys ON id = value"
)
_SELECT_EXPIRED = (
    "SELECT json_group_array(json_array(hex(key), id))"
    " FROM (SELECT key, id, created_ms FROM recent_keys ORDER BY id LIMIT ?) WHERE created_ms < ?"
)


class StoredResult(NamedTuple):
    """What is kept of the first entry with a key."""

    digest: bytes
    epoch: str
    seq: int
    connections: int


def keys_of(rows: list[Any]) -> list[bytes]:
    """The keys of flat rows that are to be added."""
    return rows[_ROW_KEY::_ROW_WIDTH]


class IdempotencyKeys:
    """All keys of one file, for the thread that writes it.

    Each method is part of the caller's transaction. If that fails, `load` must be called before anything
    else: what is in memory is then ahead of the file.
    """

    def __init__(self, db: sqlite3.Connection, most_recent: int) -> None:
        """`most_recent` keys are carried over together."""
        self._most_recent = most_recent
        self._least_moved = max(1, most_recent // _PIECES)
        self._after = b""
        self.load(db)

    def load(self, db: sqlite3.Connection) -> None:
        """Learn what the file holds."""
        # One row, as everywhere: some ten milliseconds instead of seconds beside a busy event loop.
        recent = db.execute("SELECT json_group_object(hex(key), id) FROM recent_keys").fetchone()[0]
        #: The ids in `recent_keys`, by key.
        self._recent: dict[bytes, int] = {bytes.fromhex(key): n for key, n in json.loads(recent).items()}
        #: Those that are being carried over, and of them the ids of those that are not yet, in order of keys.
        self._leaving: dict[bytes, int] = {}
        self._to_move: list[int] = []
        self._has_old = bool(db.execute("SELECT EXISTS (SELECT 1 FROM idempotency)").fetchone()[0])

    def used(self, db: sqlite3.Connection, keys: list[bytes]) -> dict[bytes, StoredResult]:
        """What is kept of these keys, those that were used before."""
        rows = []
        ids = [known[key] for known in (self._recent, self._leaving) for key in known.keys() & keys]
        if ids:
            rows += _SELECT_RECENT.run(db, ids)
        if self._has_old:
            rows += _SELECT_OLD.run(db, keys)
        return {bytes.fromhex(key): StoredResult(bytes.fromhex(digest), *rest) for key, digest, *rest in rows}

    def add(self, db: sqlite3.Connection, rows: list[Any]) -> None:
        """Keep keys that were not used before, given as flat rows, and carry some others over."""
        _INSERT.run(db, rows)
        keys = keys_of(rows)
        self._recent.update(zip(keys, rows[_ROW_ID::_ROW_WIDTH], strict=True))
        if self._leaving:
            self._move(db, max(self._least_moved, 2 * len(keys)))
        elif len(self._recent) >= self._most_recent:
            self._leaving, self._recent = self._recent, {}
            # 10 ms for 50,000.
            self._to_move = [self._leaving[key] for key in sorted(self._leaving, reverse=True)]

    def _move(self, db: sqlite3.Connection, count: int) -> None:
        piece = self._to_move[: -count - 1 : -1]
        del self._to_move[-count:]
        db.execute(_MOVE, (json.dumps(piece),))
        self._has_old = True
        if not self._to_move:
            # All at once, from the front of the table: the pages are given back without being written.
            db.execute("DELETE FROM recent_keys WHERE id <= ?", (max(self._leaving.values()),))
            self._leaving = {}

    def expire(self, db: sqlite3.Connection, created_before_ms: int) -> None:
        """Forget some of the keys made before a time.

        Each call looks at the oldest of the recent ones and at the next piece of the others' key space, so
        that no index by time is needed.
        """
        self._expire_recent(db, created_before_ms)
        last = db.execute(
            "SELECT max(key) FROM (SELECT key FROM idempotency WHERE key > ? ORDER BY key LIMIT ?)",
            (self._after, _LOOKED_AT),
        ).fetchone()[0]
        if last is not None:
            db.execute(
                "DELETE FROM idempotency WHERE key > ? AND key <= ? AND created_ms < ?",
                (self._after, last, created_before_ms),
            )
        self._after = last or b""

    def _expire_recent(self, db: sqlite3.Connection, created_before_ms: int) -> None:
        parameters = (_LOOKED_AT_RECENT, created_before_ms)
        expired = json.loads(db.execute(_SELECT_EXPIRED, parameters).fetchone()[0])
        if not expired:
            return
        db.execute(
            "DELETE FROM recent_keys WHERE id IN (SELECT value FROM json_each(?))",
            (json.dumps([number for _, number in expired]),),
        )
        for key, _ in expired:
            known = bytes.fromhex(key)
            self._leaving.pop(known, None)
            self._recent.pop(known, None)
