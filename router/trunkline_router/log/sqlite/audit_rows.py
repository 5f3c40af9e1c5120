"""Writes, reads and expires audit records."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable

from trunkline_router.core.values.stored_records import REFUSED, AuditQuery, AuditRecord

_COLUMNS = "at_ms, tenant, actor, source, action, target, before, after"
_INSERT = f"INSERT INTO audit ({_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?)"
#: One row with all results; see statements.
_SELECT = f"""
    SELECT json_group_array(json_array(id, {_COLUMNS}))
    FROM audit
    WHERE id IN (
        SELECT id FROM (
            SELECT id, size, sum(size) OVER (ORDER BY id DESC) AS total
            FROM (
                SELECT id, length(before) + length(after) AS size FROM audit
                WHERE at_ms >= ? AND (? = 0 OR id < ?) AND (? = '' OR action IN (?, ?)) {{}}
                ORDER BY id DESC LIMIT ?
            )
        )
        WHERE total - size < ?
    )
"""
#: Records that one call deletes. It looks at the oldest ones only, so that it never scans the table.
_EXPIRED_ROWS = 5_000
_EXPIRE = (
    "DELETE FROM audit WHERE id IN"
    " (SELECT id FROM (SELECT id, at_ms FROM audit ORDER BY id LIMIT ?) WHERE at_ms < ?)"
)


def write_audit(db: sqlite3.Connection, records: Iterable[AuditRecord]) -> None:
    """Append records."""
    db.executemany(_INSERT, records)


def expire_audit(db: sqlite3.Connection, before_ms: int) -> None:
    """Delete some records older than a time."""
    if before_ms:
        db.execute(_EXPIRE, (_EXPIRED_ROWS, before_ms))


def read_audit(db: sqlite3.Connection, query: AuditQuery) -> list[tuple[int, AuditRecord]]:
    """Read records with their ids, newest first."""
    tenant, action, since_ms, before_id, limit, max_chars = query
    parameters: list[object] = [since_ms, before_id, before_id, action, action, action + REFUSED]
    if tenant:
        parameters.append(tenant)
    text = _SELECT.format("AND tenant = ?" if tenant else "")
    rows = json.loads(db.execute(text, (*parameters, limit, max_chars)).fetchone()[0])
    return [(number, AuditRecord(*rest)) for number, *rest in sorted(rows, reverse=True)]
