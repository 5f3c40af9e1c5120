"""Erases logs, and what users wrote in them."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Sequence

from trunkline_router.core.values.log_records import Cursor, ErasedPiece
from trunkline_router.core.values.topics import TopicKey
from trunkline_router.log import erasure_plan
from trunkline_router.log.encryption import Encryption
from trunkline_router.log.erasure_plan import START, plan_tenant_erasure, plan_user_erasure
from trunkline_router.log.log_spans import LogSpan, agents_of
from trunkline_router.log.redaction import AuthoredEvent, AuthoredMessage, redact_events, redact_messages
from trunkline_router.log.sqlite.delivery_rows import delete_deliveries_of_logs, delete_deliveries_of_messages
from trunkline_router.log.sqlite.entry_rows import with_checksums
from trunkline_router.log.sqlite.log_walk import next_logs
from trunkline_router.log.sqlite.statements import Select, Write, look_up_ends
from trunkline_router.log.sqlite.tenant_rows import delete_tenant

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
    most = erasure_plan.DELETED_WORK
    deleted = [
        db.execute(_DELETE_WORK.format(table), (tenant, most)).rowcount
        for table in ("deliveries", "dead_letters")
    ]
    if max(deleted) == most:
        return ErasedPiece(0, cursor=START)
    erasure = plan_tenant_erasure(next_logs(db, tenant, 0))
    messages = _erase(db, tenant, erasure.logs)
    if erasure.is_last:
        delete_tenant(db, tenant)
    return erasure.erased(messages)


def erase_user(
    db: sqlite3.Connection,
    tenant: str,
    user: str,
    cursor: Cursor | None,
    now_ms: int,
    encryption: Encryption,
) -> ErasedPiece:
    """Erase some of a user's entries.

    With a data key, the tenant's key must be reserved for twice SEARCHED_ENTRIES values.
    """
    found = next_logs(db, tenant, (cursor or START)[0], inclusive=True)
    erasure = plan_user_erasure(found, user, cursor)
    receipts = db.execute(
        f"DELETE FROM receipts WHERE {_IN_LOGS} AND user = ?", (json.dumps(erasure.topic_ids), user)
    ).rowcount
    messages = _erase(db, tenant, erasure.own)
    messages += _redact(db, tenant, user, erasure.spans, now_ms, encryption)
    return erasure.erased(messages, receipts)


def _redact(
    db: sqlite3.Connection,
    tenant: str,
    user: str,
    spans: Sequence[LogSpan],
    now_ms: int,
    encryption: Encryption,
) -> int:
    """Redact a user's messages and events in these spans. Returns the number of messages."""
    rows = [value for span in spans for value in (span.topic_id, span.first, span.last, user)]
    found = [
        AuthoredMessage(topic_id, seq, created_ms, role, first == "00", written_in)
        for topic_id, seq, created_ms, role, first, written_in in _MESSAGES_OF_USER.run(db, rows)
    ]
    messages = redact_messages(encryption, tenant, spans, found, now_ms)
    _REWRITE_MESSAGES.run(db, with_checksums(messages))
    keys = [(topic_id, seq) for topic_id, seq, _ in messages]
    agents = agents_of(spans, keys)
    delete_deliveries_of_messages(db, tenant, agents, keys)
    events = [
        AuthoredEvent(topic_id, seq, change, bytes.fromhex(stored))
        for topic_id, seq, change, stored in _EVENTS_OF_USER.run(db, rows)
    ]
    _REWRITE_EVENTS.run(db, with_checksums(redact_events(encryption, tenant, events)))
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
