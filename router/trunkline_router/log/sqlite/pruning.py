"""Erasing the beginnings of the SQLite log's logs, as far as a tenant's limits say.

Age and number cost a few look-ups for each log that is within the limits. How many bytes a log holds is
not written down anywhere, as each append would pay for it: they are added up from its end backward,
for many small logs at once, and for a large one over several pieces.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from trunkline_router.core.values.log_records import Cursor, ErasedPiece, HistoryLimits
from trunkline_router.log.sqlite.delivery_rows import forget_deliveries
from trunkline_router.log.sqlite.log_walk import LOGS, Span, next_logs, within
from trunkline_router.log.sqlite.statements import Select, Write

#: Entries that one piece deletes, or whose sizes it adds up; and what else is done for one log, as if it
#: were entries.
_ENTRIES = 2_000
_ENTRIES_A_LOG = 20

_IN_SPAN = "topic_id = column1 AND seq BETWEEN column2 AND column3"
#: The first message that is open, and when the first entry was written.
_FRONTS = Select(
    "column1, (SELECT min(seq) FROM open_messages WHERE topic_id = column1),"
    " coalesce((SELECT created_ms FROM messages WHERE topic_id = column1 AND seq = column2),"
    " (SELECT created_ms FROM events WHERE topic_id = column1 AND seq = column2))",
    "$rows WHERE column1 IS NOT NULL",
    2,
)
_BYTES = Select(
    f"column1, coalesce((SELECT sum(length(body)) FROM messages WHERE {_IN_SPAN}), 0)"
    f" + coalesce((SELECT sum(length(body)) FROM events WHERE {_IN_SPAN}), 0)",
    "$rows WHERE column1 IS NOT NULL",
    3,
)
_MESSAGE_SIZES = Select("seq, length(body)", f"$rows CROSS JOIN messages ON {_IN_SPAN}", 3)
_EVENT_SIZES = Select("seq, length(body)", f"$rows CROSS JOIN events ON {_IN_SPAN}", 3)
_YOUNG = (
    "SELECT seq FROM {} WHERE topic_id = ? AND seq BETWEEN ? AND ? AND created_ms >= ? ORDER BY seq LIMIT 1"
)

_DELETE = "DELETE FROM {0} WHERE rowid IN (SELECT {0}.rowid FROM $rows CROSS JOIN {0} ON " + _IN_SPAN + ")"
_DELETE_MESSAGES = Write(_DELETE.format("messages"), 3)
_DELETE_EVENTS = Write(_DELETE.format("events"), 3)
_SET_PRUNED = Write("UPDATE OR ROLLBACK topics SET pruned = column3 FROM $rows WHERE topic_id = column1", 3)


@dataclass(slots=True)
class _PrunedLog:
    """A log that may be beyond the limits."""

    span: Span
    #: The last entry that may go: what is open stays, and all behind it.
    last: int
    #: When its first entry was written.
    oldest_ms: int
    #: Its size in bytes; None where that is yet to be added up.
    total: int | None
    #: How far it was added up: the entries from `seq` on hold `added` bytes.
    seq: int
    added: int


def prune(
    db: sqlite3.Connection, tenant: str, limits: HistoryLimits, cursor: Cursor | None, now_ms: int
) -> ErasedPiece:
    """Erase some beginnings.

    A cursor is a topic_id; where that log is to be gone on with, also how far its bytes were added up.
    """
    topic_id, *added_up = cursor or (0,)
    found = next_logs(db, tenant, topic_id, again=bool(added_up))
    logs = within(found, _ENTRIES) if limits.max_bytes else found
    gone: list[Span] = []
    left = _ENTRIES
    rest: Cursor | None = None
    for log in _looked_at(db, logs, limits):
        if left <= 0:
            break
        span = log.span
        if added_up and span.topic_id == topic_id:
            log.seq, log.added = added_up
        most = span.first + left - 1
        last = min(_last_beyond(db, log, limits, now_ms, most), log.last, most)
        if last >= span.first:
            gone.append(span._replace(last=last))
            left -= gone[-1].entries + _ENTRIES_A_LOG
        rest = (span.topic_id,)
        if (last == most and last < log.last) or _is_to_be_added_up(log, limits):
            rest = (span.topic_id, log.seq, log.added)
            break
    is_last = len(found) < LOGS and (not found or rest == (found[-1].topic_id,))
    return ErasedPiece(_delete(db, tenant, gone), cursor=None if is_last else rest)


def _looked_at(db: sqlite3.Connection, spans: Sequence[Span], limits: HistoryLimits) -> list[_PrunedLog]:
    fronts = {
        topic_id: rest
        for topic_id, *rest in _FRONTS.run(db, [v for span in spans for v in (span.topic_id, span.first)])
    }
    totals: dict[int, int] = {}
    if limits.max_bytes and sum(span.entries for span in spans) <= _ENTRIES:
        rows = [v for span in spans for v in (span.topic_id, span.first, span.last)]
        totals = {row[0]: row[1] for row in _BYTES.run(db, rows)}
    logs = []
    for span in spans:
        open_seq, oldest_ms = fronts[span.topic_id]
        last = span.last if open_seq is None else open_seq - 1
        total = totals.get(span.topic_id)
        logs.append(_PrunedLog(span, last, oldest_ms or 0, total, span.last + 1, 0))
    return logs


def _last_beyond(
    db: sqlite3.Connection, log: _PrunedLog, limits: HistoryLimits, now_ms: int, most: int
) -> int:
    """The last entry beyond the limits. No age is looked at behind `most`."""
    span = log.span
    last = span.first - 1
    if log.last <= last:
        return last
    if limits.max_messages:
        last = max(last, span.last - limits.max_messages)
    if limits.max_age_ms and log.oldest_ms < now_ms - limits.max_age_ms:
        last = max(last, _last_older(db, span, min(log.last, most), now_ms - limits.max_age_ms))
    if limits.max_bytes and (log.total is None or log.total > limits.max_bytes):
        _add_up(db, log, limits.max_bytes)
        if log.added > limits.max_bytes:
            last = max(last, min(log.seq, span.last - 1))
    return last


def _last_older(db: sqlite3.Connection, span: Span, last: int, time_ms: int) -> int:
    """The end of what was written before that time, at the beginning of a log up to `last`."""
    for table in ("messages", "events"):
        young = db.execute(_YOUNG.format(table), (span.topic_id, span.first, last, time_ms)).fetchone()
        if young is not None:
            last = young[0] - 1
    return last


def _add_up(db: sqlite3.Connection, log: _PrunedLog, max_bytes: int) -> None:
    """Add up some more of a log's sizes, until they are more than that."""
    if log.added > max_bytes:
        return
    row = [log.span.topic_id, max(log.span.first, log.seq - _ENTRIES), log.seq - 1]
    sizes = [*_MESSAGE_SIZES.run(db, row), *_EVENT_SIZES.run(db, row)]
    for seq, size in sorted(sizes, reverse=True):
        log.seq = seq
        log.added += size
        if log.added > max_bytes:
            return


def _is_to_be_added_up(log: _PrunedLog, limits: HistoryLimits) -> bool:
    return (
        0 < limits.max_bytes >= log.added
        and log.total is None
        and log.span.first < min(log.seq, log.last + 1)
    )


def _delete(db: sqlite3.Connection, tenant: str, spans: Sequence[Span]) -> int:
    """Delete the entries in these spans; returns how many of them were messages."""
    rows: list[Any] = [value for span in spans for value in (span.topic_id, span.first, span.last)]
    before = db.total_changes
    _DELETE_MESSAGES.run(db, rows)
    messages = db.total_changes - before
    _DELETE_EVENTS.run(db, rows)
    _SET_PRUNED.run(db, rows)
    places = [(span.topic_id, seq) for span in spans for seq in range(span.first, span.last + 1)]
    forget_deliveries(db, tenant, {span.topic[1] for span in spans}, places)
    return messages
