"""Erases logs, and what users wrote in them."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Sequence

from trunkline_router.core.values.log_records import Cursor, ErasedPiece
from trunkline_router.core.values.topics import PERSON, USER, TopicKey
from trunkline_router.log.encryption import Encryption, SealedTable, is_sealed
from trunkline_router.log.log_spans import LogSpan, take_entries, take_logs
from trunkline_router.log.redaction import redacted_change, redacted_message, redacted_read
from trunkline_router.log.sqlite.delivery_rows import delete_deliveries_of_logs, delete_deliveries_of_messages
from trunkline_router.log.sqlite.entry_rows import with_checksums
from trunkline_router.log.sqlite.log_walk import LOGS, next_logs
from trunkline_router.log.sqlite.statements import Select, Write, look_up_ends
from trunkline_router.log.sqlite.tenant_rows import delete_tenant

#: Deliveries of a tenant that one piece deletes, and entries that one piece searches for those of a user.
_DELETED_ROWS = 2_000
SEARCHED_ENTRIES = 2_000
#: Entries of the logs that one piece erases: their events must be counted.
_ERASED_ENTRIES = 100_000
#: Cursor of the first piece.
_START: Cursor = (0, 0)

_IN_LOGS = "topic_id IN (SELECT value FROM json_each(?))"
_DELETE_WORK = "DELETE FROM {0} WHERE delivery_id IN (SELECT delivery_id FROM {0} WHERE tenant = ? LIMIT ?)"

_IN_SPAN = "topic_id = column1 AND seq BETWEEN column2 AND column3"
_MESSAGES_OF_USER = Select(
    "topic_id, seq, created_ms, role, hex(substr(body, 1, 1)), (SELECT epoch FROM former_epochs"
    " WHERE former_epochs.topic_id = column1 AND seq BETWEEN first_seq AND last_seq)",
    f"$rows CROSS JOIN messages ON {_IN_SPAN} AND author_user = column4 AND NOT EXISTS"
    " (SELECT 1 FROM open_messages AS o WHERE o.topic_id = messages.topic_id AND o.seq = messages.seq)",
    4,
)
_EVENTS_OF_USER = Select(
    "topic_id, seq, change, hex(body)", f"$rows CROSS JOIN events ON {_IN_SPAN} AND user = column4", 4
)
_REWRITE = (
    "UPDATE OR ROLLBACK {} = '', body = column3, crc = column4 FROM $rows"
    " WHERE topic_id = column1 AND seq = column2"
)
_REWRITE_MESSAGES = Write(_REWRITE.format("messages SET author_user"), 4)
_REWRITE_EVENTS = Write(_REWRITE.format("events SET user"), 4)


def reset(db: sqlite3.Connection, topic: TopicKey) -> int:
    """Erase a log. Returns the number of its messages."""
    ((head, pruned, _),) = look_up_ends(db, [topic])
    if not head.topic_id:
        return 0
    log = LogSpan(head.topic_id, topic, head.position.epoch, pruned + 1, head.position.seq)
    return _erase(db, topic[0], [log])


def erase_tenant(db: sqlite3.Connection, tenant: str) -> ErasedPiece:
    """Erase some of a tenant's logs, or, if none are left, the tenant's own rows."""
    # Deliveries first: any number of them may belong to one log.
    deleted = [
        db.execute(_DELETE_WORK.format(table), (tenant, _DELETED_ROWS)).rowcount
        for table in ("deliveries", "dead_letters")
    ]
    if max(deleted) == _DELETED_ROWS:
        return ErasedPiece(0, cursor=_START)
    found = next_logs(db, tenant, 0)
    logs = take_logs(found, _ERASED_ENTRIES)
    messages = _erase(db, tenant, logs)
    more = len(logs) < len(found) or len(found) == LOGS
    if not more:
        delete_tenant(db, tenant)
    return ErasedPiece(messages, topics=tuple(log.topic for log in logs), cursor=_START if more else None)


def erase_user(
    db: sqlite3.Connection,
    tenant: str,
    user: str,
    cursor: Cursor | None,
    now_ms: int,
    encryption: Encryption,
) -> ErasedPiece:
    """Erase some of a user's entries. A cursor is a topic_id and the seq up to which that log is done.

    With a data key, the tenant's key must be reserved for twice SEARCHED_ENTRIES values.
    """
    topic_id, done_seq = cursor or _START
    found = next_logs(db, tenant, topic_id, inclusive=True)
    own = [log for log in found if log.topic[3] in (PERSON, USER) and log.topic[4] == user]
    others = [log for log in found if log not in own]
    spans = take_entries(others, SEARCHED_ENTRIES, topic_id, done_seq)
    receipts = db.execute(
        f"DELETE FROM receipts WHERE {_IN_LOGS} AND user = ?",
        (json.dumps([log.topic_id for log in (*own, *spans)]), user),
    ).rowcount
    messages = _erase(db, tenant, own) + _redact(db, tenant, user, spans, now_ms, encryption)
    if spans:
        topic_id, done_seq = spans[-1].topic_id, spans[-1].last
    more = len(found) == LOGS or [span.last for span in spans] != [log.last for log in others]
    return ErasedPiece(
        messages, receipts, tuple(log.topic for log in own), (topic_id, done_seq) if more else None
    )


def _redact(
    db: sqlite3.Connection,
    tenant: str,
    user: str,
    spans: Sequence[LogSpan],
    now_ms: int,
    encryption: Encryption,
) -> int:
    """Redact a user's messages and events in these spans. Returns the number of messages.

    Bodies that were encrypted are encrypted again.
    """
    logs = {span.topic_id: span for span in spans}
    rows = [value for span in spans for value in (span.topic_id, span.first, span.last, user)]
    messages = []
    for topic_id, seq, created_ms, role, first, former in _MESSAGES_OF_USER.run(db, rows):
        log = logs[topic_id]
        body = redacted_message(log, seq, former or log.epoch, created_ms, role, now_ms)
        if is_sealed(bytes.fromhex(first)):
            body = encryption.seal(tenant, SealedTable.MESSAGES, topic_id, seq, body)
        messages.append((topic_id, seq, body))
    _REWRITE_MESSAGES.run(db, with_checksums(messages))
    keys = [(topic_id, seq) for topic_id, seq, _ in messages]
    agents = {logs[topic_id].topic[1] for topic_id, _ in keys}
    delete_deliveries_of_messages(db, tenant, agents, keys)
    events = []
    for topic_id, seq, change, text in _EVENTS_OF_USER.run(db, rows):
        stored = bytes.fromhex(text)
        body = encryption.unseal(tenant, SealedTable.EVENTS, topic_id, seq, stored)
        body = (redacted_change if change else redacted_read)(body)
        if is_sealed(stored):
            body = encryption.seal(tenant, SealedTable.EVENTS, topic_id, seq, body)
        events.append((topic_id, seq, body))
    _REWRITE_EVENTS.run(db, with_checksums(events))
    return len(messages)


def _erase(db: sqlite3.Connection, tenant: str, logs: Sequence[LogSpan]) -> int:
    """Erase logs. Returns the number of their messages.

    Readers no longer see the logs. The sweeper deletes their rows later, so that no append waits for that.
    """
    if not logs:
        return 0
    topic_ids = json.dumps([log.topic_id for log in logs])
    (events,) = db.execute(f"SELECT count(*) FROM events WHERE {_IN_LOGS}", (topic_ids,)).fetchone()
    db.execute(f"DELETE FROM topics WHERE {_IN_LOGS}", (topic_ids,))
    db.execute(f"DELETE FROM former_epochs WHERE {_IN_LOGS}", (topic_ids,))
    delete_deliveries_of_logs(db, tenant, {log.topic[1] for log in logs}, topic_ids)
    db.execute("INSERT INTO erased (topic_id) SELECT value FROM json_each(?)", (topic_ids,))
    return sum(log.entries for log in logs) - int(events)
