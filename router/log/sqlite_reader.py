"""The SQLite log's reading half. Everything here runs on the log's one reader thread."""

from __future__ import annotations

import json
import re
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from router.core.journal import Backlog, Page, PageRequest, StoredDelivery
from router.core.topics import EMPTY, Position
from router.log.port import LogUnavailable
from router.log.sqlite_batch import Head
from router.log.sqlite_file import connect_reader
from router.log.sqlite_statements import Select, look_up_heads

#: Bodies are fetched in portions of this size, as each portion is in memory three times over.
_PORTION_BYTES = 8 << 20

#: Epoch and seq; 18 digits always fit SQLite's integers.
_MESSAGE_ID = re.compile("([0-9a-hjkmnp-tv-z]{13})-([1-9][0-9]{0,17})")

_SPAN = "CROSS JOIN messages ON topic_id = column2 AND seq BETWEEN column3 AND column4"
_SIZES = Select("column1, seq, length(body)", _SPAN, 4)
_BODIES = Select("column1, seq, hex(body)", _SPAN, 4)
_MESSAGE = """
    SELECT body FROM topics JOIN messages USING (topic_id)
    WHERE epoch = ? AND seq = ? AND tenant = ?
"""
_DELIVERIES = """
    SELECT json_group_array(json_array(delivery_id, platform, kind, target, hex(body)))
    FROM (
        SELECT delivery_id, topic_id, seq FROM deliveries
        WHERE tenant = ? AND agent = ? AND delivery_id > ? ORDER BY delivery_id LIMIT ?
    ) JOIN topics USING (topic_id) JOIN messages USING (topic_id, seq)
"""
_BACKLOGS = """
    SELECT json_group_array(json_array(agent, count, created_ms))
    FROM (
        SELECT agent, count(*) AS count, min(delivery_id) AS first FROM deliveries
        WHERE tenant = ? GROUP BY agent
    ) JOIN (SELECT delivery_id, topic_id, seq FROM deliveries) ON delivery_id = first
    JOIN messages USING (topic_id, seq)
"""


class _Span(NamedTuple):
    """The messages of one page: `first` to `last`, none where `last` is smaller."""

    topic_id: int
    first: int
    last: int


class Reader:
    """The connection that reads. Every method may raise LogUnavailable."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._db = connect_reader(path)

    def pages(self, requests: Sequence[PageRequest]) -> list[Page]:
        """One page for each request, all as of one moment."""
        with self._snapshot() as db:
            heads = look_up_heads(db, [request.topic for request in requests])
            spans = [_span(request, head) for request, head in zip(requests, heads, strict=True)]
            messages = _fetch(db, requests, spans)
        return [_page(*row) for row in zip(requests, heads, spans, messages, strict=True)]

    def message(self, tenant: str, message_id: str) -> bytes | None:
        """One message of a tenant."""
        parsed = _MESSAGE_ID.fullmatch(message_id)
        if parsed is None:
            return None
        with self._snapshot() as db:
            row = db.execute(_MESSAGE, (parsed[1], int(parsed[2]), tenant)).fetchone()
        return None if row is None else row[0]

    def deliveries(self, tenant: str, agent: str, after: int, limit: int) -> list[StoredDelivery]:
        """Unsettled deliveries of an agent above an id, lowest first."""
        with self._snapshot() as db:
            rows = json.loads(db.execute(_DELIVERIES, (tenant, agent, after, limit)).fetchone()[0])
        rows.sort()
        return [
            StoredDelivery(delivery_id, (tenant, agent, platform, kind, target), bytes.fromhex(body))
            for delivery_id, platform, kind, target, body in rows
        ]

    def backlogs(self, tenant: str) -> list[Backlog]:
        """What is unsettled, by agent."""
        with self._snapshot() as db:
            return [Backlog(*row) for row in json.loads(db.execute(_BACKLOGS, (tenant,)).fetchone()[0])]

    def close(self) -> None:
        """Release the connection."""
        self._db.close()

    @contextmanager
    def _snapshot(self) -> Iterator[sqlite3.Connection]:
        try:
            self._db.execute("BEGIN")
            try:
                yield self._db
            finally:
                self._db.rollback()
        except sqlite3.Error as error:
            raise LogUnavailable(f"{self._path}: {error}") from error


def _is_valid(position: Position | None, head: Position) -> bool:
    if position is None or position == EMPTY:
        return True
    return position.epoch == head.epoch and 0 <= position.seq <= head.seq


def _span(request: PageRequest, head: Head) -> _Span:
    """The messages that are asked for, whatever their size: seqs have no gaps."""
    end = head.position.seq
    if not (_is_valid(request.after, head.position) and _is_valid(request.before, head.position)):
        return _Span(head.topic_id, 1, 0)
    if request.after is not None:
        return _Span(head.topic_id, request.after.seq + 1, min(request.after.seq + request.limit, end))
    last = end if request.before is None else request.before.seq - 1
    return _Span(head.topic_id, max(last - request.limit + 1, 1), last)


def _fetch(
    db: sqlite3.Connection, requests: Sequence[PageRequest], spans: list[_Span]
) -> list[list[tuple[int, bytes]]]:
    """The messages of each span, oldest first, as many as its request's `max_bytes` allows."""
    sizes: list[list[tuple[int, int]]] = [[] for _ in spans]
    for index, seq, size in _SIZES.run(db, _flat(enumerate(spans))):
        sizes[index].append((seq, size))
    messages: list[list[tuple[int, bytes]]] = [[] for _ in spans]
    portion: list[tuple[int, _Span]] = []
    portion_bytes = 0
    for index, request in enumerate(requests):
        if not sizes[index]:
            continue
        # From the end where the page must begin.
        sizes[index].sort(reverse=request.after is None)
        seqs, total = _within(sizes[index], request.max_bytes)
        portion.append((index, _Span(spans[index].topic_id, min(seqs), max(seqs))))
        portion_bytes += total
        if portion_bytes >= _PORTION_BYTES:
            _fetch_portion(db, portion, messages)
            portion, portion_bytes = [], 0
    _fetch_portion(db, portion, messages)
    return messages


def _within(sizes: list[tuple[int, int]], max_bytes: int) -> tuple[list[int], int]:
    """The first seqs of `sizes` that stay within `max_bytes` together, at least one, and their sum."""
    seqs: list[int] = []
    total = 0
    for seq, size in sizes:
        if seqs and total + size > max_bytes:
            break
        seqs.append(seq)
        total += size
    return seqs, total


def _fetch_portion(
    db: sqlite3.Connection, portion: list[tuple[int, _Span]], messages: list[list[tuple[int, bytes]]]
) -> None:
    for index, seq, body in _BODIES.run(db, _flat(portion)):
        messages[index].append((seq, bytes.fromhex(body)))
    for index, _ in portion:
        messages[index].sort()


def _flat(spans: Any) -> list[Any]:
    return [value for index, span in spans for value in (index, *span)]


def _page(request: PageRequest, head: Head, span: _Span, messages: list[tuple[int, bytes]]) -> Page:
    end = head.position
    if not (_is_valid(request.after, end) and _is_valid(request.before, end)):
        return Page([], False, end, valid=False)
    if request.after is not None:
        more = (messages[-1][0] if messages else span.first - 1) < end.seq
    else:
        more = (messages[0][0] if messages else span.last + 1) > 1
    return Page(messages, more, end)
