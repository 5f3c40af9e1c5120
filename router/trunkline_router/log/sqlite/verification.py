"""Verifies a log file: SQLite's own check of its pages, and the log's invariants."""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Iterator
from threading import Event, Timer
from typing import NamedTuple

from trunkline_router.log.encryption import is_sealed
from trunkline_router.log.stored_entries import is_intact, is_readable

#: Raised by statements on a damaged file. Python decodes SQLite's messages, which may quote damaged bytes.
SQLITE_ERRORS = (sqlite3.Error, UnicodeDecodeError)

#: Problems that one check reports at most.
MAX_PROBLEMS = 20
#: Steps of SQLite's virtual machine between two calls of a progress handler: a few milliseconds.
HANDLER_STEPS = 100_000

_COUNTS = """
    SELECT t.topic_id, t.tenant, t.pruned,
        coalesce(m.entries, 0) + coalesce(e.entries, 0) AS entries,
        min(coalesce(m.first, e.first), coalesce(e.first, m.first)) AS first,
        max(coalesce(m.last, e.last), coalesce(e.last, m.last)) AS last
    FROM topics AS t
    LEFT JOIN (
        SELECT topic_id, count(*) AS entries, min(seq) AS first, max(seq) AS last
        FROM messages GROUP BY topic_id
    ) AS m USING (topic_id)
    LEFT JOIN (
        SELECT topic_id, count(*) AS entries, min(seq) AS first, max(seq) AS last
        FROM events GROUP BY topic_id
    ) AS e USING (topic_id)
"""
_GAPS = f"""
    SELECT topic_id, tenant, entries, last, pruned FROM ({_COUNTS})
    WHERE entries > 0 AND (entries <> last - pruned OR first <> pruned + 1) LIMIT {MAX_PROBLEMS}
"""
_NUMBERED_TWICE = f"SELECT topic_id, seq FROM messages JOIN events USING (topic_id, seq) LIMIT {MAX_PROBLEMS}"
#: Rows that must belong to a stored message, unless their log was erased and is being swept.
_WITHOUT_MESSAGE = """
    SELECT topic_id, seq FROM {table} AS row
    WHERE NOT EXISTS (SELECT 1 FROM messages AS m WHERE m.topic_id = row.topic_id AND m.seq = row.seq)
    AND topic_id NOT IN (SELECT topic_id FROM erased) LIMIT {limit}
"""
_WITHOUT_LOG = """
    SELECT DISTINCT topic_id FROM {table} WHERE topic_id NOT IN (SELECT topic_id FROM topics)
    AND topic_id NOT IN (SELECT topic_id FROM erased) LIMIT {limit}
"""
_ABOVE_SEQUENCE = """
    SELECT max({column}) FROM {table}
    WHERE {column} > coalesce((SELECT seq FROM sqlite_sequence WHERE name = '{sequence}'), 0)
"""
_ENTRIES = "SELECT topic_id, seq, body, crc FROM {} WHERE topic_id IN (SELECT topic_id FROM topics)"
_SEQUENCES = (
    ("topics", "topic_id", "topics"),
    ("deliveries", "delivery_id", "deliveries"),
    ("dead_letters", "delivery_id", "deliveries"),
)


class LogTotals(NamedTuple):
    """Totals of a log file, for the manifest of its backup."""

    tenants: int
    topics: int
    messages: int
    heads_sha256: str


def page_problems(db: sqlite3.Connection, *, whole: bool) -> list[str]:
    """Check the pages of a file; `whole` also compares every index with its table."""
    pragma = "integrity_check" if whole else "quick_check"
    try:
        rows = [row[0] for row in db.execute(f"PRAGMA {pragma}({MAX_PROBLEMS})")]
    except SQLITE_ERRORS as error:
        if is_interrupt(error):
            raise
        return [str(error)]
    return [] if rows == ["ok"] else rows


def log_problems(db: sqlite3.Connection) -> list[str]:
    """Check the log's invariants: seqs without gaps, rows that belong together, ids below their counters."""
    try:
        return list(_log_problems(db))[:MAX_PROBLEMS]
    except SQLITE_ERRORS as error:
        if is_interrupt(error):
            raise
        return [str(error)]


def _log_problems(db: sqlite3.Connection) -> Iterator[str]:
    for topic_id, tenant, entries, last, pruned in db.execute(_GAPS):
        yield (
            f"log {topic_id} of tenant {tenant} has {entries} entries instead of {last - pruned}:"
            f" those from {pruned + 1} to {last}"
        )
    for topic_id, seq in db.execute(_NUMBERED_TWICE):
        yield f"log {topic_id} has two entries with seq {seq}"
    for table in ("deliveries", "dead_letters", "open_messages"):
        for topic_id, seq in db.execute(_WITHOUT_MESSAGE.format(table=table, limit=MAX_PROBLEMS)):
            yield f"{table} refers to a message that is missing: log {topic_id}, seq {seq}"
    for table in ("messages", "events"):
        for (topic_id,) in db.execute(_WITHOUT_LOG.format(table=table, limit=MAX_PROBLEMS)):
            yield f"{table} holds entries of log {topic_id}, which does not exist"
    for table, column, sequence in _SEQUENCES:
        query = _ABOVE_SEQUENCE.format(table=table, column=column, sequence=sequence)
        highest = db.execute(query).fetchone()[0]
        if highest is not None:
            yield f"{table} holds id {highest}, which the counter of ids has not reached"


def entry_problems(db: sqlite3.Connection) -> list[str]:
    """Compare the entries of existing logs with their checksums; those of older versions must be readable."""
    problems = []
    try:
        for table in ("messages", "events"):
            for topic_id, seq, body, crc in db.execute(_ENTRIES.format(table)):
                if not is_intact(topic_id, seq, body, crc):
                    problems.append(f"entry {seq} of log {topic_id} in {table} does not have its checksum")
                elif crc is None and not is_sealed(body) and not is_readable(seq, body):
                    problems.append(f"entry {seq} of log {topic_id} in {table} cannot be read")
                if len(problems) == MAX_PROBLEMS:
                    return problems
    except (*SQLITE_ERRORS, TypeError) as error:
        if is_interrupt(error):
            raise
        problems.append(str(error))
    return problems


def totals_of(db: sqlite3.Connection) -> LogTotals:
    """Count a file's tenants, topics and messages, and hash the heads of its logs."""
    digest = hashlib.sha256()
    topics = 0
    for row in db.execute(
        "SELECT t.tenant, t.agent, t.platform, t.kind, t.target, t.epoch, t.pruned,"
        f" max(t.pruned, coalesce(c.last, 0)) FROM topics AS t JOIN ({_COUNTS}) AS c USING (topic_id)"
        " ORDER BY t.tenant, t.agent, t.platform, t.kind, t.target"
    ):
        digest.update(repr(row).encode())
        topics += 1
    tenants = db.execute("SELECT count(*) FROM tenants").fetchone()[0]
    messages = db.execute("SELECT count(*) FROM messages").fetchone()[0]
    return LogTotals(tenants, topics, messages, digest.hexdigest())


def is_interrupt(error: Exception) -> bool:
    """Return whether a statement was interrupted, as by a progress handler."""
    return getattr(error, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_INTERRUPT


def is_corruption(error: Exception) -> bool:
    """Return whether SQLite has found a damaged page."""
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    return isinstance(error, UnicodeDecodeError) or code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)


def quick_problems(db: sqlite3.Connection, seconds: float) -> list[str] | None:
    """Check as many pages as time permits; None if there was not enough time."""
    is_late = Event()

    def interrupt() -> None:
        is_late.set()
        db.interrupt()

    # Not by a progress handler, which SQLite does not call while it walks the pages of its B-trees.
    timer = Timer(seconds, interrupt)
    timer.start()
    try:
        problems = page_problems(db, whole=False)
        # SQLite takes pages that it did not reach for lost ones.
        return None if is_late.is_set() else problems
    except sqlite3.OperationalError:
        return None
    finally:
        timer.cancel()
        timer.join()
