"""Stores idempotency keys and their results.

Keys are random, so each insert into a table ordered by key writes a page of its own. New keys are therefore
appended to `recent_keys`, and a dict finds them there. Once there are many, they move to `idempotency` in the
order of keys, a piece with each commit, so that one page write takes all keys of that page.
"""

from __future__ import annotations

import json
import sqlite3
from typing import Any

from trunkline_router.log.append_results import StoredResult
from trunkline_router.log.sqlite.statements import Insert, Select

#: Recent keys that move together. Meanwhile at most half as many more arrive, about 160 bytes each in memory.
RECENT_KEYS = 50_000
#: Commits that a move takes at most; with smaller pieces, more pages would be written twice.
_PIECES = 200
#: Rows of each table that one `expire` examines.
_EXAMINED = 10_000
_EXAMINED_RECENT = 2_000

_COLUMNS = "key, digest, epoch, seq, connections, created_ms"
#: Columns of a row to insert.
_ROW_ID, _ROW_KEY, _ROW_WIDTH = 0, 1, 7

_INSERT = Insert("recent_keys", ("id", *_COLUMNS.split(", ")))
_RESULT = (
    "hex(key), hex(digest), epoch, seq, connections,"
    " coalesce((SELECT topics.epoch FROM former_epochs JOIN topics USING (topic_id)"
    " WHERE former_epochs.epoch = {0}.epoch), {0}.epoch)"
)
_SELECT_RECENT = Select(_RESULT.format("recent_keys"), "$rows CROSS JOIN recent_keys ON id = column1", 1)
_SELECT_OLD = Select(_RESULT.format("idempotency"), "$rows CROSS JOIN idempotency ON key = column1", 1)
#: CROSS JOIN keeps the order of the given ids, which is that of their keys. OR IGNORE: after a restart, a
#: move starts again.
_MOVE = (
    f"INSERT OR IGNORE INTO idempotency ({_COLUMNS})"
    f" SELECT {_COLUMNS} FROM (SELECT value FROM json_each(?)) CROSS JOIN recent_keys ON id = value"
)
_SELECT_EXPIRED = (
    "SELECT json_group_array(json_array(hex(key), id))"
    " FROM (SELECT key, id, created_ms FROM recent_keys ORDER BY id LIMIT ?) WHERE created_ms < ?"
)


def keys_of(rows: list[Any]) -> list[bytes]:
    """The keys in flat rows to be added."""
    return rows[_ROW_KEY::_ROW_WIDTH]


class IdempotencyKeys:
    """All keys of one file, used on its writer thread.

    Each method runs in the caller's transaction. If that fails, memory is ahead of the file, and `load`
    must be called before anything else.
    """

    def __init__(self, db: sqlite3.Connection, most_recent: int) -> None:
        """Load the keys; `most_recent` of them move together."""
        self._most_recent = most_recent
        self._least_moved = max(1, most_recent // _PIECES)
        self._after = b""
        self.load(db)

    def load(self, db: sqlite3.Connection) -> None:
        """Load the state from the file."""
        # All in one row: about ten milliseconds instead of seconds beside a busy event loop; see statements.
        recent = db.execute("SELECT json_group_object(hex(key), id) FROM recent_keys").fetchone()[0]
        #: Ids in `recent_keys` by key.
        self._recent: dict[bytes, int] = {bytes.fromhex(key): n for key, n in json.loads(recent).items()}
        #: Keys that are moving, and the ids of those still to move, in reverse order of keys.
        self._moving: dict[bytes, int] = {}
        self._to_move: list[int] = []
        self._has_old = bool(db.execute("SELECT EXISTS (SELECT 1 FROM idempotency)").fetchone()[0])

    def used(self, db: sqlite3.Connection, keys: list[bytes]) -> dict[bytes, StoredResult]:
        """The stored results of those keys that are in use."""
        rows = []
        ids = [known[key] for known in (self._recent, self._moving) for key in known.keys() & keys]
        if ids:
            rows += _SELECT_RECENT.run(db, ids)
        if self._has_old:
            rows += _SELECT_OLD.run(db, keys)
        return {bytes.fromhex(key): StoredResult(bytes.fromhex(digest), *rest) for key, digest, *rest in rows}

    def add(self, db: sqlite3.Connection, rows: list[Any]) -> None:
        """Store new keys, given as flat rows, and move some older ones."""
        _INSERT.run(db, rows)
        keys = keys_of(rows)
        self._recent.update(zip(keys, rows[_ROW_ID::_ROW_WIDTH], strict=True))
        if self._moving:
            self._move(db, max(self._least_moved, 2 * len(keys)))
        elif len(self._recent) >= self._most_recent:
            self._moving, self._recent = self._recent, {}
            # 10 ms for 50,000.
            self._to_move = [self._moving[key] for key in sorted(self._moving, reverse=True)]

    def _move(self, db: sqlite3.Connection, count: int) -> None:
        piece = self._to_move[: -count - 1 : -1]
        del self._to_move[-count:]
        db.execute(_MOVE, (json.dumps(piece),))
        self._has_old = True
        if not self._to_move:
            # All at once, from the front of the table: pages are freed without being written.
            db.execute("DELETE FROM recent_keys WHERE id <= ?", (max(self._moving.values()),))
            self._moving = {}

    def expire(self, db: sqlite3.Connection, created_before_ms: int) -> None:
        """Delete some of the keys created before a time.

        Each call examines the oldest recent keys and the next piece of the others' key space, so that no
        index by time is needed.
        """
        self._expire_recent(db, created_before_ms)
        last = db.execute(
            "SELECT max(key) FROM (SELECT key FROM idempotency WHERE key > ? ORDER BY key LIMIT ?)",
            (self._after, _EXAMINED),
        ).fetchone()[0]
        if last is not None:
            db.execute(
                "DELETE FROM idempotency WHERE key > ? AND key <= ? AND created_ms < ?",
                (self._after, last, created_before_ms),
            )
        self._after = last or b""

    def _expire_recent(self, db: sqlite3.Connection, created_before_ms: int) -> None:
        parameters = (_EXAMINED_RECENT, created_before_ms)
        expired = json.loads(db.execute(_SELECT_EXPIRED, parameters).fetchone()[0])
        if not expired:
            return
        db.execute(
            "DELETE FROM recent_keys WHERE id IN (SELECT value FROM json_each(?))",
            (json.dumps([number for _, number in expired]),),
        )
        for key, _ in expired:
            known = bytes.fromhex(key)
            self._moving.pop(known, None)
            self._recent.pop(known, None)
