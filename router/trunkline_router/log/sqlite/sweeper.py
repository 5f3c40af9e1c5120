"""Deletes the rows of erased logs, a bounded number at a time."""

from __future__ import annotations

import json
import sqlite3

#: Rows that one call deletes, and the logs that they belong to, at most.
_ROWS = 2_000
_LOGS = 500
#: Marks of cancelled messages that one call deletes.
_MARKS = 2_000
#: Tables that hold rows of erased logs until they are swept, and the key of each.
_TABLES = {
    "messages": "rowid",
    "events": "rowid",
    "receipts": "(topic_id, user)",
    "open_messages": "(topic_id, seq)",
    "open_deltas": "delta_id",
    "cancelled_messages": "(topic_id, seq)",
}
_EXPIRED = (
    "DELETE FROM cancelled_messages WHERE (topic_id, seq) IN"
    " (SELECT topic_id, seq FROM cancelled_messages WHERE cancelled_ms < ? LIMIT ?)"
)
_OLDEST = "SELECT json_group_array(topic_id) FROM (SELECT topic_id FROM erased ORDER BY topic_id LIMIT ?)"


def expire_cancelled(db: sqlite3.Connection, cancelled_before_ms: int) -> None:
    """Delete some marks of cancelled messages that were set before a time."""
    db.execute(_EXPIRED, (cancelled_before_ms, _MARKS))


def delete_erased(db: sqlite3.Connection) -> None:
    """Delete some rows of erased logs, oldest logs first."""
    those = db.execute(_OLDEST, (_LOGS,)).fetchone()[0]
    if not json.loads(those):
        return
    left = _ROWS
    for table, key in _TABLES.items():
        some = (
            f"SELECT {key.strip('()')} FROM {table}"
            " WHERE topic_id IN (SELECT value FROM json_each(?)) LIMIT ?"
        )
        left -= db.execute(f"DELETE FROM {table} WHERE {key} IN ({some})", (those, left)).rowcount
        if not left:
            return
    db.execute("DELETE FROM erased WHERE topic_id IN (SELECT value FROM json_each(?))", (those,))
