"""Reads pages of logs: first the sizes of the requested entries, then the bodies of those that fit."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from typing import Any

from trunkline_router.core.values.log_records import Page, PageRequest
from trunkline_router.log.page_plan import PagePlan, plan_page
from trunkline_router.log.sqlite.statements import Select, look_up_ends
from trunkline_router.log.stored_values import StoredValues

#: Bodies are fetched in portions of this size: each portion is in memory three times.
_PORTION_BYTES = 8 << 20

_MESSAGES = "$rows CROSS JOIN messages ON topic_id = column2 AND seq BETWEEN column3 AND column4"
_MESSAGE_SIZES = Select("column1, seq, length(body)", _MESSAGES, 4)
_MESSAGE_BODIES = Select("column1, seq, hex(body), crc", _MESSAGES, 4)

#: Edits bring their message; ends bring it if the message precedes column5. A pruned message is missing.
_EVENTS = (
    "$rows CROSS JOIN events ON events.topic_id = column2 AND events.seq BETWEEN column3 AND column4"
    " LEFT JOIN messages AS brought ON brought.topic_id = column2 AND brought.seq = message_seq"
    " AND (change = 2 OR change = 1 AND message_seq < column5)"
)
_EVENT_SIZES = Select(
    "column1, events.seq, length(events.body) + coalesce(length(brought.body), 0)", _EVENTS, 5
)
_EVENT_BODIES = Select(
    "column1, events.seq, change, hex(events.body), events.crc, brought.seq, hex(brought.body), brought.crc",
    _EVENTS,
    5,
)

#: Walks from one message to the next, as any number of events may lie between. column3 is the start, column4
#: whether to go forward, column5 the number of messages to find.
_NEAREST = Select(
    "page, messages.seq, length(body)",
    """(
        WITH RECURSIVE walk (page, topic, at, forward, most, found) AS (
            SELECT column1, column2, column3, column4, column5, 0 FROM $rows
            UNION ALL
            SELECT page, topic, CASE WHEN forward
                THEN (SELECT min(seq) FROM messages WHERE topic_id = topic AND seq > at)
                ELSE (SELECT max(seq) FROM messages WHERE topic_id = topic AND seq < at)
            END, forward, most, found + 1
            FROM walk WHERE found < most AND at IS NOT NULL
        )
        SELECT page, topic, at FROM walk WHERE found > 0
    ) CROSS JOIN messages ON topic_id = topic AND seq = at""",
    5,
)


def read_pages(db: sqlite3.Connection, requests: Sequence[PageRequest], values: StoredValues) -> list[Page]:
    """Read one page for each request, in order."""
    ends = look_up_ends(db, [request.topic for request in requests])
    plans = [plan_page(request, end) for request, end in zip(requests, ends, strict=True)]
    _look_up_sizes(db, plans)
    portion: list[PagePlan] = []
    portion_bytes = 0
    for plan in plans:
        portion_bytes += plan.cut()
        portion.append(plan)
        if portion_bytes >= _PORTION_BYTES:
            _fetch(db, portion, values)
            portion, portion_bytes = [], 0
    _fetch(db, portion, values)
    return [plan.page() for plan in plans]


def _look_up_sizes(db: sqlite3.Connection, plans: list[PagePlan]) -> None:
    nearest: list[Any] = []
    messages: list[Any] = []
    events: list[Any] = []
    for index, plan in enumerate(plans):
        if plan.is_empty:
            continue
        topic_id, forward = plan.head.topic_id, plan.is_forward
        if plan.request.messages_only:
            # One more than the limit tells whether there are more.
            start = plan.first - 1 if forward else plan.last + 1
            nearest += (index, topic_id, start, forward, plan.request.limit + 1)
        else:
            messages += (index, topic_id, plan.first, plan.last)
            # A backward page may be cut anywhere, so any end may bring its message.
            events += (index, topic_id, plan.first, plan.last, plan.first if forward else plan.last + 1)
    for statement, rows in ((_NEAREST, nearest), (_MESSAGE_SIZES, messages), (_EVENT_SIZES, events)):
        for index, seq, size in statement.run(db, rows):
            plans[index].sizes.append((seq, size))


def _fetch(db: sqlite3.Connection, plans: list[PagePlan], values: StoredValues) -> None:
    """Read the entries of planned pages."""
    messages: list[Any] = []
    events: list[Any] = []
    for index, plan in enumerate(plans):
        if plan.is_empty:
            continue
        span = (index, plan.head.topic_id, plan.first, plan.last)
        messages += span
        if not plan.request.messages_only:
            events += (*span, plan.first)

    for index, seq, body, crc in _MESSAGE_BODIES.run(db, messages):
        plans[index].add_message(values, seq, bytes.fromhex(body), crc)
    for index, seq, change, body, crc, brought_seq, brought, brought_crc in _EVENT_BODIES.run(db, events):
        message = bytes.fromhex(brought or "")
        plans[index].add_event(
            values, seq, change, bytes.fromhex(body), crc, brought_seq, message, brought_crc
        )
