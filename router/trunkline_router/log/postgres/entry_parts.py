"""Parts of the statement that writes a batch: entries, open messages, receipts and idempotency keys."""

from __future__ import annotations

from typing import Any

from trunkline_router.log.batch import (
    DELTA_COLUMNS,
    EVENT_COLUMNS,
    KEY_COLUMNS,
    MESSAGE_COLUMNS,
    Batch,
)
from trunkline_router.log.postgres.batch_part import Part, columns_of, transposed
from trunkline_router.log.postgres.stored_text import to_column
from trunkline_router.log.stored_entries import checksum


def _with_checksums(rows: list[Any], width: int) -> list[list[Any]]:
    columns = columns_of(rows, width)
    columns.append(list(map(checksum, columns[0], columns[1], columns[-1])))
    return columns


def _topics(batch: Batch) -> list[list[Any]]:
    return columns_of(batch.topics, 7)


TOPICS = Part(
    """new_topics AS (
        INSERT INTO topics (topic_id, tenant, agent, platform, kind, target, epoch)
        SELECT new.* FROM fence,
            unnest(%1::bigint[], %2::text[], %3::text[], %4::text[], %5::int[], %6::text[], %7::text[]) AS new
    )""",
    _topics,
)


def _messages(batch: Batch) -> list[object]:
    topic_ids, seqs, _, roles, users, bodies, crcs = _with_checksums(batch.messages, MESSAGE_COLUMNS)
    return [topic_ids, seqs, batch.now_ms, roles, users, bodies, crcs]


MESSAGES = Part(
    """new_messages AS (
        INSERT INTO messages (topic_id, seq, created_ms, role, author_user, body, crc)
        SELECT topic_id, seq, %3::bigint, role, author_user, body, crc FROM fence,
            unnest(%1::bigint[], %2::bigint[], %4::int[], %5::text[], %6::bytea[], %7::bigint[])
            AS new (topic_id, seq, role, author_user, body, crc)
    )""",
    _messages,
)


def _events(batch: Batch) -> list[object]:
    topic_ids, seqs, _, *rest = _with_checksums(batch.events, EVENT_COLUMNS)
    return [topic_ids, seqs, batch.now_ms, *rest]


EVENTS = Part(
    """new_events AS (
        INSERT INTO events (topic_id, seq, created_ms, change, message_seq, user_name, body, crc)
        SELECT topic_id, seq, %3::bigint, change, message_seq, user_name, body, crc FROM fence,
            unnest(%1::bigint[], %2::bigint[], %4::int[], %5::bigint[], %6::text[], %7::bytea[], %8::bigint[])
            AS new (topic_id, seq, change, message_seq, user_name, body, crc)
    )""",
    _events,
)


def _changed(batch: Batch) -> list[list[Any]]:
    topic_ids, seqs = transposed(batch.changed, 2)
    bodies, users = transposed(batch.changed.values(), 2)
    return [topic_ids, seqs, bodies, users, list(map(checksum, topic_ids, seqs, bodies))]


#: Skips messages whose author was erased meanwhile: the change contains the former author.
CHANGED = Part(
    """changed AS (
        UPDATE messages AS m SET body = new.body, crc = new.crc
        FROM fence, unnest(%1::bigint[], %2::bigint[], %3::bytea[], %4::text[], %5::bigint[])
            AS new (topic_id, seq, body, author_user, crc)
        WHERE m.topic_id = new.topic_id AND m.seq = new.seq AND m.author_user = new.author_user
    )""",
    _changed,
)


def _ended(batch: Batch) -> list[list[Any]]:
    return transposed(set(batch.ended), 2)


ENDED = Part(
    """ended AS MATERIALIZED (
        SELECT topic_id, seq FROM fence, unnest(%1::bigint[], %2::bigint[]) AS ended (topic_id, seq)
    ),
    ended_messages AS (
        DELETE FROM open_messages AS o USING ended WHERE o.topic_id = ended.topic_id AND o.seq = ended.seq
    ),
    ended_deltas AS (
        DELETE FROM open_deltas AS d USING ended WHERE d.topic_id = ended.topic_id AND d.seq = ended.seq
    )""",
    _ended,
)


def _opens(batch: Batch) -> list[list[Any]]:
    topic_ids, seqs, names, epochs = columns_of(batch.opens, 4)
    return [topic_ids, seqs, list(map(to_column, names)), epochs]


OPENS = Part(
    """new_open_messages AS (
        INSERT INTO open_messages (topic_id, seq, producer, producer_epoch)
        SELECT new.* FROM fence, unnest(%1::bigint[], %2::bigint[], %3::text[], %4::bigint[]) AS new
    )""",
    _opens,
)


def _deltas(batch: Batch) -> list[list[Any]]:
    columns = columns_of(batch.deltas, DELTA_COLUMNS)
    if batch.ended:
        ended = set(batch.ended)
        rows = [row for row in zip(*columns, strict=True) if row[:2] not in ended]
        return transposed(rows, DELTA_COLUMNS)
    return columns


#: The order of ids is that of the deltas.
DELTAS = Part(
    """new_deltas AS (
        INSERT INTO open_deltas (topic_id, seq, deltas)
        SELECT topic_id, seq, new.deltas FROM fence,
            unnest(%1::bigint[], %2::bigint[], %3::bytea[]) WITH ORDINALITY
                AS new (topic_id, seq, deltas, number)
            JOIN open_messages USING (topic_id, seq)
        ORDER BY number
    )""",
    _deltas,
)


def _producers(batch: Batch) -> list[list[Any]]:
    ended = set(batch.ended)
    rows = [
        (*key, to_column(name), epoch) for key, (name, epoch) in batch.producers.items() if key not in ended
    ]
    return transposed(rows, 4)


PRODUCERS = Part(
    """producers AS (
        UPDATE open_messages AS o SET producer = new.producer, producer_epoch = new.producer_epoch
        FROM fence, unnest(%1::bigint[], %2::bigint[], %3::text[], %4::bigint[])
            AS new (topic_id, seq, producer, producer_epoch)
        WHERE o.topic_id = new.topic_id AND o.seq = new.seq
            AND (o.producer, o.producer_epoch) IS DISTINCT FROM (new.producer, new.producer_epoch)
    )""",
    _producers,
)


def _receipts(batch: Batch) -> list[object]:
    highest: dict[tuple[int, str], tuple[int, int]] = {}
    rows = batch.receipts
    for topic_id, user, delivered, read in zip(rows[::5], rows[1::5], rows[2::5], rows[3::5], strict=True):
        key = (topic_id, user)
        if (other := highest.get(key)) is not None:
            highest[key] = (max(delivered, other[0]), max(read, other[1]))
        else:
            highest[key] = (delivered, read)
    return [*transposed(highest, 2), *transposed(highest.values(), 2), batch.now_ms]


#: Writes only receipts that advance.
RECEIPTS = Part(
    """new_receipts AS (
        INSERT INTO receipts AS r (topic_id, user_name, delivered, read, updated_ms)
        SELECT new.*, %5::bigint
        FROM fence, unnest(%1::bigint[], %2::text[], %3::bigint[], %4::bigint[]) AS new
        ON CONFLICT (topic_id, user_name) DO UPDATE SET delivered = greatest(r.delivered, excluded.delivered),
            read = greatest(r.read, excluded.read), updated_ms = excluded.updated_ms
        WHERE excluded.delivered > r.delivered OR excluded.read > r.read
    )""",
    _receipts,
)


def _keys(batch: Batch) -> list[object]:
    _, *columns, _ = columns_of(batch.keys, KEY_COLUMNS)
    return [*columns, batch.now_ms]


#: A key in use fails the statement.
KEYS = Part(
    """new_keys AS (
        INSERT INTO idempotency (key, digest, epoch, seq, connections, created_ms)
        SELECT new.*, %6::bigint FROM fence,
            unnest(%1::bytea[], %2::bytea[], %3::text[], %4::bigint[], %5::bigint[]) AS new
    )""",
    _keys,
)
