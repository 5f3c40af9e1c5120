"""Erases the beginnings of logs that exceed a tenant's retention.

Age and number cost a few look-ups for each log within its limits. The size of a log is stored nowhere,
because each append would pay for that: it is summed from the end backward, for many small logs at once, and
for a large log over several pieces.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from trunkline_router.core.values.log_records import Cursor, ErasedPiece, HistoryLimits
from trunkline_router.log.log_spans import LogSpan, take_logs
from trunkline_router.log.sqlite.delivery_rows import delete_deliveries_of_messages
from trunkline_router.log.sqlite.log_walk import LOGS, next_logs
from trunkline_router.log.sqlite.statements import Select, Write

#: Entries that one piece deletes or sums; and the fixed cost of one log, in entries.
_ENTRIES = 2_000
_ENTRIES_A_LOG = 20

_IN_SPAN = "topic_id = column1 AND seq BETWEEN column2 AND column3"
#: The first open message, and the time of the first entry.
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
    """A log that may exceed its limits."""

    span: LogSpan
    #: The last entry that may be erased: an open message stays, with everything after it.
    last: int
    #: Time of the first entry.
    oldest_ms: int
    #: Size in bytes; None if not summed at once.
    total_bytes: int | None
    #: Progress of the sum: the entries from `summed_from` on hold `summed_bytes`.
    summed_from: int
    summed_bytes: int


def prune(
    db: sqlite3.Connection, tenant: str, limits: HistoryLimits, cursor: Cursor | None, now_ms: int
) -> ErasedPiece:
    """Erase the beginnings of some logs.

    A cursor is a topic_id; to continue with that log, it also holds the progress of its sum.
    """
    topic_id, *progress = cursor or (0,)
    found = next_logs(db, tenant, topic_id, inclusive=bool(progress))
    logs = take_logs(found, _ENTRIES) if limits.max_bytes else found
    pruned: list[LogSpan] = []
    left = _ENTRIES
    rest: Cursor | None = None
    for log in _load(db, logs, limits):
        if left <= 0:
            break
        span = log.span
        if progress and span.topic_id == topic_id:
            log.summed_from, log.summed_bytes = progress
        most = span.first + left - 1
        last = min(_last_over_limit(db, log, limits, now_ms, most), log.last, most)
        if last >= span.first:
            pruned.append(span._replace(last=last))
            left -= pruned[-1].entries + _ENTRIES_A_LOG
        rest = (span.topic_id,)
        if (last == most and last < log.last) or _needs_sum(log, limits):
            rest = (span.topic_id, log.summed_from, log.summed_bytes)
            break
    is_last = len(found) < LOGS and (not found or rest == (found[-1].topic_id,))
    return ErasedPiece(_delete(db, tenant, pruned), cursor=None if is_last else rest)


def _load(db: sqlite3.Connection, spans: Sequence[LogSpan], limits: HistoryLimits) -> list[_PrunedLog]:
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


def _last_over_limit(
    db: sqlite3.Connection, log: _PrunedLog, limits: HistoryLimits, now_ms: int, most: int
) -> int:
    """Return the last entry beyond the limits. Ages are not examined after `most`."""
    span = log.span
    last = span.first - 1
    if log.last <= last:
        return last
    if limits.max_messages:
        last = max(last, span.last - limits.max_messages)
    if limits.max_age_ms and log.oldest_ms < now_ms - limits.max_age_ms:
        last = max(last, _last_older(db, span, min(log.last, most), now_ms - limits.max_age_ms))
    if limits.max_bytes and (log.total_bytes is None or log.total_bytes > limits.max_bytes):
        _sum_sizes(db, log, limits.max_bytes)
        if log.summed_bytes > limits.max_bytes:
            last = max(last, min(log.summed_from, span.last - 1))
    return last


def _last_older(db: sqlite3.Connection, span: LogSpan, last: int, time_ms: int) -> int:
    """Return the last entry, up to `last`, of the log's beginning that was written before a time."""
    for table in ("messages", "events"):
        young = db.execute(_YOUNG.format(table), (span.topic_id, span.first, last, time_ms)).fetchone()
        if young is not None:
            last = young[0] - 1
    return last


def _sum_sizes(db: sqlite3.Connection, log: _PrunedLog, max_bytes: int) -> None:
    """Sum more of a log's sizes, until the sum exceeds `max_bytes`."""
    if log.summed_bytes > max_bytes:
        return
    row = [log.span.topic_id, max(log.span.first, log.summed_from - _ENTRIES), log.summed_from - 1]
    sizes = [*_MESSAGE_SIZES.run(db, row), *_EVENT_SIZES.run(db, row)]
    for seq, size in sorted(sizes, reverse=True):
        log.summed_from = seq
        log.summed_bytes += size
        if log.summed_bytes > max_bytes:
            return


def _needs_sum(log: _PrunedLog, limits: HistoryLimits) -> bool:
    return (
        0 < limits.max_bytes >= log.summed_bytes
        and log.total_bytes is None
        and log.span.first < min(log.summed_from, log.last + 1)
    )


def _delete(db: sqlite3.Connection, tenant: str, spans: Sequence[LogSpan]) -> int:
    """Delete the entries in these spans. Returns the number of messages among them."""
    rows: list[Any] = [value for span in spans for value in (span.topic_id, span.first, span.last)]
    before = db.total_changes
    _DELETE_MESSAGES.run(db, rows)
    messages = db.total_changes - before
    _DELETE_EVENTS.run(db, rows)
    _SET_PRUNED.run(db, rows)
    keys = [(span.topic_id, seq) for span in spans for seq in range(span.first, span.last + 1)]
    delete_deliveries_of_messages(db, tenant, {span.topic[1] for span in spans}, keys)
    return messages
