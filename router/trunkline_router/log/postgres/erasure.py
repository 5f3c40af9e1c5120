"""Erases logs, and what users wrote in them: each piece reads first, then writes one statement."""

from __future__ import annotations

from collections.abc import Sequence

from trunkline_router.core.values.log_records import Cursor, ErasedPiece
from trunkline_router.core.values.topics import TopicKey
from trunkline_router.log import erasure_plan
from trunkline_router.log.encryption import is_sealed
from trunkline_router.log.erasure_plan import START, plan_tenant_erasure, plan_user_erasure
from trunkline_router.log.log_spans import LogSpan
from trunkline_router.log.postgres.batch_part import transposed
from trunkline_router.log.postgres.fence import FencedWriter
from trunkline_router.log.postgres.key_store import KeyStore
from trunkline_router.log.postgres.log_walk import SPANS, find_log, next_logs, span_columns
from trunkline_router.log.postgres.texts import is_storable
from trunkline_router.log.postgres.unsettled_work import DELETE_WORK, work_of_messages, work_of_tenant
from trunkline_router.log.redaction import (
    AuthoredEvent,
    AuthoredMessage,
    RedactedEntry,
    redact_events,
    redact_messages,
)
from trunkline_router.log.stored_entries import checksum

_COUNT_EVENTS = "SELECT count(*) FROM events WHERE topic_id = ANY ($1::bigint[])"
#: Scans all deliveries of the agents: an index would cost every message for the few that are erased
#: unsettled.
_ERASE_LOGS = """
    gone_topics AS (DELETE FROM topics USING fence WHERE topic_id = ANY ($3::bigint[])),
    gone_epochs AS (DELETE FROM former_epochs USING fence WHERE topic_id = ANY ($3::bigint[])),
    to_sweep AS (INSERT INTO erased (topic_id) SELECT id FROM fence, unnest($3::bigint[]) AS id),
    deliveries_of_logs AS (
        DELETE FROM deliveries USING fence
        WHERE tenant = $4 AND agent = ANY ($5::text[]) AND topic_id = ANY ($3::bigint[])
    ),
    dead_letters_of_logs AS (
        DELETE FROM dead_letters USING fence
        WHERE tenant = $4 AND agent = ANY ($5::text[]) AND topic_id = ANY ($3::bigint[])
    )
"""
_DELETE_TENANT = ",".join(
    f"gone_{table} AS (DELETE FROM {table} USING fence WHERE {table}.tenant = $4)"
    for table in ("tenants", "api_keys", "revocations", "tenant_keys")
)

#: OFFSET 0 keeps the look-up by key of each span.
_MESSAGES_OF_USER = f"""
    SELECT m.topic_id, m.seq, m.created_ms, m.role, substr(m.body, 1, 1) AS start, (
        SELECT epoch FROM former_epochs AS f
        WHERE f.topic_id = m.topic_id AND m.seq BETWEEN f.first_seq AND f.last_seq
    ) AS written_in
    FROM {SPANS} CROSS JOIN LATERAL (
        SELECT * FROM messages WHERE topic_id = s.topic_id AND seq BETWEEN s.first AND s.last OFFSET 0
    ) AS m
    WHERE m.author_user = $4 AND NOT EXISTS (
        SELECT FROM open_messages AS o WHERE o.topic_id = m.topic_id AND o.seq = m.seq
    )
"""
_EVENTS_OF_USER = f"""
    SELECT e.topic_id, e.seq, e.change, e.body
    FROM {SPANS} CROSS JOIN LATERAL (
        SELECT * FROM events WHERE topic_id = s.topic_id AND seq BETWEEN s.first AND s.last OFFSET 0
    ) AS e
    WHERE e.user_name = $4
"""
#: Deliveries of redacted messages, which are not of the logs that are erased as a whole.
_REDACT = """
    redacted_messages AS (
        UPDATE messages AS m SET author_user = '', body = u.body, crc = u.crc
        FROM fence, unnest($6::bigint[], $7::bigint[], $8::bytea[], $9::bigint[])
            AS u (topic_id, seq, body, crc)
        WHERE m.topic_id = u.topic_id AND m.seq = u.seq
    ),
    redacted_events AS (
        UPDATE events AS e SET user_name = '', body = u.body, crc = u.crc
        FROM fence, unnest($10::bigint[], $11::bigint[], $12::bytea[], $13::bigint[])
            AS u (topic_id, seq, body, crc)
        WHERE e.topic_id = u.topic_id AND e.seq = u.seq
    ),
    redacted_deliveries AS (DELETE FROM deliveries USING fence WHERE delivery_id = ANY ($14::bigint[])),
    redacted_dead_letters AS (DELETE FROM dead_letters USING fence WHERE delivery_id = ANY ($15::bigint[])),
    gone_receipts AS (
        DELETE FROM receipts USING fence WHERE topic_id = ANY ($16::bigint[]) AND user_name = $17
        RETURNING 1
    )
"""


async def reset(writer: FencedWriter, topic: TopicKey) -> int:
    """Erase a log. Returns the number of its messages."""
    logs = await find_log(writer, topic)
    if not logs:
        return 0
    messages = await _count_messages(writer, logs)
    await writer.write(_ERASE_LOGS, "NULL", *_erased(topic[0], logs))
    return messages


async def erase_tenant(writer: FencedWriter, key_store: KeyStore, tenant: str) -> ErasedPiece:
    """Erase some of a tenant's logs, or, if none are left, the tenant's own rows."""
    if not is_storable(tenant):
        return ErasedPiece(0)
    # Deliveries first: any number of them may belong to one log.
    most = erasure_plan.DELETED_WORK
    work = await work_of_tenant(writer, tenant, most)
    if work.deliveries or work.dead_letters:
        await writer.write(DELETE_WORK, "NULL", *work)
        if max(map(len, work)) == most:
            return ErasedPiece(0, cursor=START)
    erasure = plan_tenant_erasure(await next_logs(writer, tenant, 0))
    messages = await _count_messages(writer, erasure.logs)
    parameters = _erased(tenant, erasure.logs)
    if not erasure.is_last:
        await writer.write(_ERASE_LOGS, "NULL", *parameters)
    else:
        await writer.uninterrupted(_delete_tenant(writer, key_store, tenant, parameters))
    return erasure.erased(messages)


async def _delete_tenant(
    writer: FencedWriter, key_store: KeyStore, tenant: str, parameters: Sequence[object]
) -> None:
    """Erase the last logs of a tenant, given as parameters of _ERASE_LOGS, with its own rows and keys."""
    async with key_store.lock:
        await writer.write(f"{_ERASE_LOGS}, {_DELETE_TENANT}", "NULL", *parameters)
        key_store.encryption.forget(tenant)


async def erase_user(
    writer: FencedWriter, key_store: KeyStore, tenant: str, user: str, cursor: Cursor | None, now_ms: int
) -> ErasedPiece:
    """Erase some of a user's entries."""
    found = await next_logs(writer, tenant, (cursor or START)[0], inclusive=True)
    erasure = plan_user_erasure(found, user, cursor)
    if not found.logs or not is_storable(user):
        return ErasedPiece(0)
    count = await _count_messages(writer, erasure.own)
    messages, events = await _redacted(writer, key_store, tenant, user, erasure.spans, now_ms)
    keys = [(topic_id, seq) for topic_id, seq, _ in messages]
    work = await work_of_messages(writer, tenant, erasure.spans, keys)
    receipts = await writer.write(
        f"{_ERASE_LOGS}, {_REDACT}",
        "to_jsonb((SELECT count(*) FROM gone_receipts))",
        *_erased(tenant, erasure.own),
        *_with_checksums(messages),
        *_with_checksums(events),
        *work,
        erasure.topic_ids,
        user,
    )
    return erasure.erased(count + len(messages), receipts)


async def _redacted(
    writer: FencedWriter, key_store: KeyStore, tenant: str, user: str, spans: Sequence[LogSpan], now_ms: int
) -> tuple[list[RedactedEntry], list[RedactedEntry]]:
    """Read a user's messages and events in these spans, and redact them."""
    columns = span_columns(spans)
    messages = [
        AuthoredMessage(topic_id, seq, created_ms, role, is_sealed(start), written_in)
        for topic_id, seq, created_ms, role, start, written_in in await writer.read(
            _MESSAGES_OF_USER, *columns, user
        )
    ]
    events = [AuthoredEvent(*row) for row in await writer.read(_EVENTS_OF_USER, *columns, user)]
    encryption = key_store.encryption
    if encryption.data_keys is not None and (messages or events):
        await key_store.reserve([tenant], len(messages) + len(events))
    # Nothing is awaited between: others use the same key.
    return (
        redact_messages(encryption, tenant, spans, messages, now_ms),
        redact_events(encryption, tenant, events),
    )


async def _count_messages(writer: FencedWriter, logs: Sequence[LogSpan]) -> int:
    if not logs:
        return 0
    ((events,),) = await writer.read(_COUNT_EVENTS, [log.topic_id for log in logs])
    return sum(log.entries for log in logs) - int(events)


def _erased(tenant: str, logs: Sequence[LogSpan]) -> tuple[list[int], str, list[str]]:
    """Return the parameters of _ERASE_LOGS.

    Readers no longer see the logs. The sweeper deletes their rows later, so that no append waits for that.
    """
    return [log.topic_id for log in logs], tenant, list({log.topic[1] for log in logs})


def _with_checksums(entries: Sequence[RedactedEntry]) -> list[list[object]]:
    return transposed([(*entry, checksum(*entry)) for entry in entries], 4)
