"""Verifies a log file: SQLite's own check of its pages, and the log's invariants."""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Iterator
from threading import Event, Timer
from typing import NamedTuple

from trunkline_router.log.encryption import is_sealed
from trunkline_router.log.log_checks import MAX_PROBLEMS, counts, log_checks
from trunkline_router.log.stored_entries import is_intact, is_readable

#: Raised by statements on a damaged file. Python decodes SQLite's messages, which may quote damaged bytes.
SQLITE_ERRORS = (sqlite3.Error, UnicodeDecodeError)

#: Steps of SQLite's virtual machine between two calls of a progress handler: a few milliseconds.
HANDLER_STEPS = 100_000

_COUNTS = counts(least="min", greatest="max")
_CHECKS = log_checks(_COUNTS, "SELECT seq FROM sqlite_sequence WHERE name = '{name}'")
_ENTRIES = "SELECT topic_id, seq, body, crc FROM {} WHERE topic_id IN (SELECT topic_id FROM topics)"


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
    for query, sentence in _CHECKS:
        for row in db.execute(query):
            yield sentence.format(*row)


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
