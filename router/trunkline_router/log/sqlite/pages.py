"""Reading pages of the SQLite log's logs: first how large what is asked for is, then what fits."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from trunkline.v1.message_pb2 import Change

from trunkline_router.core.values.log_records import Entry, EntryKind, Page, PageRequest
from trunkline_router.core.values.topics import EMPTY, Position
from trunkline_router.log.batch import Head
from trunkline_router.log.sqlite.statements import Select, look_up_ends

#: Bodies are fetched in portions of this size, as each portion is in memory three times over.
_PORTION_BYTES = 8 << 20

_MESSAGES = "$rows CROSS JOIN messages ON topic_id = column2 AND seq BETWEEN column3 AND column4"
_MESSAGE_SIZES = Select("column1, seq, length(body)", _MESSAGES, 4)
_MESSAGE_BODIES = Select("column1, seq, hex(body)", _MESSAGES, 4)

#: Edits bring the message with them, and so do ends of messages that stand before column5, where it is there.
_EVENTS = (
    "$rows CROSS JOIN events ON events.topic_id = column2 AND events.seq BETWEEN column3 AND column4"
    " LEFT JOIN messages AS brought ON brought.topic_id = column2 AND brought.seq = message_seq"
    " AND (change = 2 OR change = 1 AND message_seq < column5)"
)
_EVENT_SIZES = Select(
    "column1, events.seq, length(events.body) + coalesce(length(brought.body), 0)", _EVENTS, 5
)
_EVENT_BODIES = Select("column1, events.seq, change, hex(events.body), hex(brought.body)", _EVENTS, 5)

#: From one message to the next, as any number of events may lie between: column3 is where to start, column4
#: whether to go forward, column5 how many to find.
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

#: What stands before the bytes of a Change's `message`: its field's number, and "bytes follow".
_MESSAGE_TAG = bytes((Change.MESSAGE_FIELD_NUMBER << 3 | 2,))


@dataclass(slots=True)
class _PagePlan:
    """A page in the making."""

    request: PageRequest
    head: Head
    #: The log begins behind this seq.
    pruned: int
    #: What is asked for lies between these seqs; nothing where `last` is smaller.
    first: int
    last: int
    valid: bool
    #: Entries that are asked for, whatever their size: seq and size.
    sizes: list[tuple[int, int]] = field(default_factory=list)
    more: bool = False
    entries: list[Entry] = field(default_factory=list)


def read_pages(db: sqlite3.Connection, requests: Sequence[PageRequest]) -> list[Page]:
    """One page for each request, in order."""
    ends = look_up_ends(db, [request.topic for request in requests])
    plans = [_plan(request, *end) for request, end in zip(requests, ends, strict=True)]
    _look_up_sizes(db, plans)
    portion: list[_PagePlan] = []
    portion_bytes = 0
    for plan in plans:
        portion_bytes += _cut(plan)
        portion.append(plan)
        if portion_bytes >= _PORTION_BYTES:
            _fetch(db, portion)
            portion, portion_bytes = [], 0
    _fetch(db, portion)
    return [Page(plan.entries, plan.more, plan.head.position, plan.valid) for plan in plans]


def _plan(request: PageRequest, head: Head, pruned: int) -> _PagePlan:
    end = head.position.seq
    if not (_is_valid(request.after, head.position) and _is_valid(request.before, head.position)):
        return _PagePlan(request, head, pruned, 1, 0, valid=False)
    if request.after is not None:
        first, last = max(request.after.seq, pruned) + 1, end
    else:
        first, last = pruned + 1, end if request.before is None else request.before.seq - 1
    if not request.messages_only:
        # Entries have no gaps.
        if request.after is not None:
            last = min(last, first + request.limit - 1)
        else:
            first = max(first, last - request.limit + 1)
    return _PagePlan(request, head, pruned, first, last, valid=True)


def _is_valid(position: Position | None, head: Position) -> bool:
    if position is None or position == EMPTY:
        return True
    return position.epoch == head.epoch and 0 <= position.seq <= head.seq


def _look_up_sizes(db: sqlite3.Connection, plans: list[_PagePlan]) -> None:
    nearest: list[Any] = []
    messages: list[Any] = []
    events: list[Any] = []
    for index, plan in enumerate(plans):
        if plan.last < plan.first:
            continue
        request, topic_id = plan.request, plan.head.topic_id
        forward = request.after is not None
        if request.messages_only:
            # One more tells whether there are more.
            start = plan.first - 1 if forward else plan.last + 1
            nearest += (index, topic_id, start, forward, request.limit + 1)
        else:
            messages += (index, topic_id, plan.first, plan.last)
            # A page that is read backward may be cut anywhere: then any end may bring its message.
            events += (index, topic_id, plan.first, plan.last, plan.first if forward else plan.last + 1)
    for statement, rows in ((_NEAREST, nearest), (_MESSAGE_SIZES, messages), (_EVENT_SIZES, events)):
        for index, seq, size in statement.run(db, rows):
            plans[index].sizes.append((seq, size))


def _cut(plan: _PagePlan) -> int:
    """Cut a page to what fits; returns how many bytes that is."""
    request = plan.request
    forward = request.after is not None
    # From the end where the page must begin.
    plan.sizes.sort(reverse=not forward)
    seqs, total = _within(plan.sizes[: request.limit], request.max_bytes)
    if request.messages_only:
        plan.more = len(plan.sizes) > len(seqs)
    elif forward:
        plan.more = plan.valid and (seqs[-1] if seqs else plan.first - 1) < plan.head.position.seq
    else:
        plan.more = plan.valid and (seqs[-1] if seqs else plan.last + 1) > plan.pruned + 1
    plan.first, plan.last = (min(seqs), max(seqs)) if seqs else (1, 0)
    return total


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


def _fetch(db: sqlite3.Connection, plans: list[_PagePlan]) -> None:
    messages: list[Any] = []
    events: list[Any] = []
    for index, plan in enumerate(plans):
        if plan.last < plan.first:
            continue
        span = (index, plan.head.topic_id, plan.first, plan.last)
        messages += span
        if not plan.request.messages_only:
            events += (*span, plan.first)
    for index, seq, body in _MESSAGE_BODIES.run(db, messages):
        plans[index].entries.append(Entry(seq, EntryKind.MESSAGE, bytes.fromhex(body)))
    for index, seq, change, body, brought in _EVENT_BODIES.run(db, events):
        kind = EntryKind.CHANGE if change else EntryKind.READ
        plans[index].entries.append(
            Entry(seq, kind, _with_message(bytes.fromhex(body), bytes.fromhex(brought)))
        )
    for plan in plans:
        plan.entries.sort()


def _with_message(change: bytes, message: bytes) -> bytes:
    """A serialized Change with a serialized Message as its last field."""
    if not message:
        return change
    length = bytearray()
    rest = len(message)
    while rest > 127:
        length.append(rest & 127 | 128)
        rest >>= 7
    length.append(rest)
    return b"".join((change, _MESSAGE_TAG, length, message))
