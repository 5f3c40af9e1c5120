"""Erases the beginnings of logs that exceed a tenant's retention."""

from __future__ import annotations

import sqlite3
from collections.abc import Coroutine, Iterable, Mapping, Sequence
from typing import Any, TypeVar

from trunkline_router.core.values.log_records import Cursor, ErasedPiece, HistoryLimits
from trunkline_router.log.log_spans import LogPiece, LogSpan
from trunkline_router.log.pruning_plan import EntrySize, Front, Pruning, plan_pruning
from trunkline_router.log.sqlite.delivery_rows import delete_deliveries_of_messages
from trunkline_router.log.sqlite.log_walk import next_logs
from trunkline_router.log.sqlite.statements import Select, Write

_T = TypeVar("_T")

_IN_SPAN = "topic_id = column1 AND seq BETWEEN column2 AND column3"
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
_SIZES = [
    Select("topic_id, seq, length(body)", f"$rows CROSS JOIN {table} ON {_IN_SPAN}", 3)
    for table in ("messages", "events")
]
_YOUNG = (
    "SELECT seq FROM {} WHERE topic_id = ? AND seq BETWEEN ? AND ? AND created_ms >= ? ORDER BY seq LIMIT 1"
)

_DELETE = "DELETE FROM {0} WHERE rowid IN (SELECT {0}.rowid FROM $rows CROSS JOIN {0} ON " + _IN_SPAN + ")"
_DELETE_MESSAGES = Write(_DELETE.format("messages"), 3)
_DELETE_EVENTS = Write(_DELETE.format("events"), 3)
_SET_PRUNED = Write("UPDATE OR ROLLBACK topics SET pruned = column3 FROM $rows WHERE topic_id = column1", 3)


def prune(
    db: sqlite3.Connection, tenant: str, limits: HistoryLimits, cursor: Cursor | None, now_ms: int
) -> ErasedPiece:
    """Erase the beginnings of some logs."""
    pruning = _finish(plan_pruning(_TransactionReads(db), tenant, limits, cursor, now_ms))
    return ErasedPiece(_delete(db, tenant, pruning), cursor=pruning.cursor)


class _TransactionReads:
    """Implements PruningReads in the caller's transaction. Its coroutines never suspend."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db

    async def next_logs(self, tenant: str, topic_id: int, *, inclusive: bool) -> LogPiece:
        """See PruningReads."""
        return next_logs(self._db, tenant, topic_id, inclusive=inclusive)

    async def fronts(self, spans: Sequence[LogSpan]) -> Mapping[int, Front]:
        """See PruningReads."""
        rows = _FRONTS.run(self._db, [v for span in spans for v in (span.topic_id, span.first)])
        return {topic_id: Front(*rest) for topic_id, *rest in rows}

    async def total_bytes(self, spans: Sequence[LogSpan]) -> Mapping[int, int]:
        """See PruningReads."""
        return {row[0]: row[1] for row in _BYTES.run(self._db, _rows(spans))}

    async def sizes(self, spans: Sequence[LogSpan]) -> Iterable[EntrySize]:
        """See PruningReads."""
        return [EntrySize(*row) for select in _SIZES for row in select.run(self._db, _rows(spans))]

    async def first_since(self, span: LogSpan, time_ms: int) -> int | None:
        """See PruningReads."""
        first: int | None = None
        last = span.last
        for table in ("messages", "events"):
            row = self._db.execute(
                _YOUNG.format(table), (span.topic_id, span.first, last, time_ms)
            ).fetchone()
            if row is not None:
                first = row[0]
                last = first - 1
        return first


def _finish(coroutine: Coroutine[Any, Any, _T]) -> _T:
    """Run a coroutine that never suspends, on any thread."""
    try:
        coroutine.send(None)
    except StopIteration as end:
        value: _T = end.value
        return value
    raise AssertionError("a read waits for an event loop")


def _delete(db: sqlite3.Connection, tenant: str, pruning: Pruning) -> int:
    """Delete the entries. Returns the number of messages among them."""
    rows = _rows(pruning.spans)
    before = db.total_changes
    _DELETE_MESSAGES.run(db, rows)
    messages = db.total_changes - before
    _DELETE_EVENTS.run(db, rows)
    _SET_PRUNED.run(db, rows)
    agents = {span.topic[1] for span in pruning.spans}
    delete_deliveries_of_messages(db, tenant, agents, pruning.messages)
    return messages


def _rows(spans: Sequence[LogSpan]) -> list[Any]:
    return [value for span in spans for value in (span.topic_id, span.first, span.last)]
