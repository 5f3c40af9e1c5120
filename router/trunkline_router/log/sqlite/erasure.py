"""Erasing logs of the SQLite log, and what users have in them."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Sequence
from typing import Any

from trunkline.v1.frame_pb2 import ReadFrame
from trunkline.v1.message_pb2 import MESSAGE_STATE_RECALLED, Author, Change, Message

from trunkline_router.core.values.log_records import Cursor, ErasedPiece
from trunkline_router.core.values.topics import PERSON, USER, Position, TopicKey, address_of
from trunkline_router.log.sqlite.delivery_rows import forget_deliveries, forget_deliveries_of_logs
from trunkline_router.log.sqlite.log_walk import LOGS, Span, next_logs, within
from trunkline_router.log.sqlite.statements import Select, Write, look_up_ends
from trunkline_router.log.sqlite.tenant_rows import erase_registered

#: Deliveries of a tenant that one piece deletes, and entries that one looks at for those of a user.
_DELETED_ROWS = 2_000
_LOOKED_AT = 2_000
#: Entries of the logs that one piece erases, as events have to be counted.
_ERASED_ENTRIES = 100_000
#: Where to go on when nothing is known of where.
_START: Cursor = (0, 0)

_THOSE_LOGS = "topic_id IN (SELECT value FROM json_each(?))"
_DELETE_WORK = "DELETE FROM {0} WHERE delivery_id IN (SELECT delivery_id FROM {0} WHERE tenant = ? LIMIT ?)"

_BY_USER = "topic_id = column1 AND seq BETWEEN column2 AND column3"
_SAID = Select(
    "topic_id, seq, created_ms, role",
    f"$rows CROSS JOIN messages ON {_BY_USER} AND author_user = column4 AND NOT EXISTS"
    " (SELECT 1 FROM open_messages AS o WHERE o.topic_id = messages.topic_id AND o.seq = messages.seq)",
    4,
)
_HAPPENED = Select(
    "topic_id, seq, change, hex(body)", f"$rows CROSS JOIN events ON {_BY_USER} AND user = column4", 4
)
_REWRITE = "UPDATE OR ROLLBACK {} = '', body = column3 FROM $rows WHERE topic_id = column1 AND seq = column2"
_REWRITE_MESSAGES = Write(_REWRITE.format("messages SET author_user"), 3)
_REWRITE_EVENTS = Write(_REWRITE.format("events SET user"), 3)


def reset(db: sqlite3.Connection, topic: TopicKey) -> int:
    """Erase a log; returns how many messages it held."""
    ((head, pruned),) = look_up_ends(db, [topic])
    if not head.topic_id:
        return 0
    return _erase(
        db, topic[0], [Span(head.topic_id, topic, head.position.epoch, pruned + 1, head.position.seq)]
    )


def erase_tenant(db: sqlite3.Connection, tenant: str) -> ErasedPiece:
    """Erase some of a tenant's logs, or, if there are none left, its own rows."""
    # First, as any number of them may be of one log.
    work = [
        db.execute(_DELETE_WORK.format(table), (tenant, _DELETED_ROWS)).rowcount
        for table in ("deliveries", "dead_letters")
    ]
    if max(work) == _DELETED_ROWS:
        return ErasedPiece(0, cursor=_START)
    found = next_logs(db, tenant, 0)
    logs = within(found, _ERASED_ENTRIES)
    messages = _erase(db, tenant, logs)
    more = len(logs) < len(found) or len(found) == LOGS
    if not more:
        erase_registered(db, tenant)
    return ErasedPiece(messages, topics=tuple(log.topic for log in logs), cursor=_START if more else None)


def erase_user(
    db: sqlite3.Connection, tenant: str, user: str, cursor: Cursor | None, now_ms: int
) -> ErasedPiece:
    """Erase some of what a user has. A cursor is a topic_id, and the seq up to which that log is done."""
    topic_id, done = cursor or _START
    found = next_logs(db, tenant, topic_id, again=True)
    own = [log for log in found if log.topic[3] in (PERSON, USER) and log.topic[4] == user]
    others = [log for log in found if log not in own]
    parts = _parts(others, topic_id, done)
    receipts = db.execute(
        f"DELETE FROM receipts WHERE {_THOSE_LOGS} AND user = ?",
        (json.dumps([log.topic_id for log in (*own, *parts)]), user),
    ).rowcount
    messages = _erase(db, tenant, own) + _forget_user(db, tenant, user, parts, now_ms)
    if parts:
        topic_id, done = parts[-1].topic_id, parts[-1].last
    more = len(found) == LOGS or [log.last for log in parts] != [log.last for log in others]
    return ErasedPiece(
        messages, receipts, tuple(log.topic for log in own), (topic_id, done) if more else None
    )


def _parts(logs: Sequence[Span], topic_id: int, done: int) -> list[Span]:
    """What of these logs one piece looks at; of that one, only what is behind a seq."""
    parts = []
    left = _LOOKED_AT
    for log in logs:
        first = max(log.first, done + 1) if log.topic_id == topic_id else log.first
        part = log._replace(first=first, last=min(log.last, first + left - 1))
        parts.append(part)
        left -= part.entries
        if part.last < log.last:
            break
    return parts


def _forget_user(db: sqlite3.Connection, tenant: str, user: str, parts: Sequence[Span], now_ms: int) -> int:
    """Erase what a user has in these parts of logs; returns how many messages that was."""
    logs = {log.topic_id: log for log in parts}
    asked = [value for log in parts for value in (log.topic_id, log.first, log.last, user)]
    said = _SAID.run(db, asked)
    bodies = [
        (topic_id, seq, _erased_message(logs[topic_id], seq, created_ms, role, now_ms))
        for topic_id, seq, created_ms, role in said
    ]
    _REWRITE_MESSAGES.run(db, [value for row in bodies for value in row])
    places = [(topic_id, seq) for topic_id, seq, _, _ in said]
    forget_deliveries(db, tenant, {logs[topic_id].topic[1] for topic_id, _ in places}, places)
    happened = [
        (topic_id, seq, _by_nobody(bytes.fromhex(body), is_change=bool(change)))
        for topic_id, seq, change, body in _HAPPENED.run(db, asked)
    ]
    _REWRITE_EVENTS.run(db, [value for row in happened for value in row])
    return len(bodies)


def _erased_message(log: Span, seq: int, created_ms: int, role: Any, now_ms: int) -> bytes:
    message = Message(
        id=f"{log.epoch}-{seq}",
        address=address_of(log.topic),
        position=Position(log.epoch, seq).to_proto(),
        author=Author(role=role),
        state=MESSAGE_STATE_RECALLED,
    )
    message.created_at.FromMilliseconds(created_ms)
    message.updated_at.FromMilliseconds(now_ms)
    return message.SerializeToString()


def _by_nobody(body: bytes, *, is_change: bool) -> bytes:
    """An event without the user who did it."""
    if not is_change:
        read = ReadFrame.FromString(body)
        read.ClearField("user")
        return read.SerializeToString()
    change = Change.FromString(body)
    change.author.ClearField("user")
    change.author.ClearField("name")
    return change.SerializeToString()


def _erase(db: sqlite3.Connection, tenant: str, logs: Sequence[Span]) -> int:
    """Erase logs; returns how many messages they held.

    They are out of everyone's sight at once; the rows of a long one are deleted by later sweeps, so that
    nobody's append waits for it.
    """
    if not logs:
        return 0
    those = json.dumps([log.topic_id for log in logs])
    (events,) = db.execute(f"SELECT count(*) FROM events WHERE {_THOSE_LOGS}", (those,)).fetchone()
    db.execute(f"DELETE FROM topics WHERE {_THOSE_LOGS}", (those,))
    forget_deliveries_of_logs(db, tenant, {log.topic[1] for log in logs}, those)
    db.execute("INSERT INTO erased (topic_id) SELECT value FROM json_each(?)", (those,))
    return sum(log.entries for log in logs) - int(events)
