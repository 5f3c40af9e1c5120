"""Writes batches."""

from __future__ import annotations

import json
import sqlite3
from typing import Any

from trunkline_router.log.batch import EVENT_COLUMNS, MESSAGE_COLUMNS, Batch
from trunkline_router.log.sqlite.entry_rows import append_checksums
from trunkline_router.log.sqlite.forks import fork_logs
from trunkline_router.log.sqlite.statements import Insert, Select, Write, message_id_of
from trunkline_router.log.stored_entries import checksum

_INSERT_TOPICS = Insert("topics", ("topic_id", "tenant", "agent", "platform", "kind", "target", "epoch"))
_INSERT_MESSAGES = Insert("messages", ("topic_id", "seq", "created_ms", "role", "author_user", "body", "crc"))
_INSERT_EVENTS = Insert(
    "events", ("topic_id", "seq", "created_ms", "change", "message_seq", "user", "body", "crc")
)
#: Skips messages whose author was erased meanwhile: the change contains the former author.
_CHANGE_MESSAGES = Write(
    "UPDATE OR ROLLBACK messages SET body = column3, crc = column5 FROM $rows"
    " WHERE topic_id = column1 AND seq = column2 AND author_user = column4",
    5,
)

_INSERT_OPENS = Insert("open_messages", ("topic_id", "seq", "producer", "producer_epoch"))
_IN_ROWS = "WHERE (topic_id, seq) IN (SELECT column1, column2 FROM $rows)"
_DELETE_OPENS = Write(f"DELETE FROM open_messages {_IN_ROWS}", 2)
_DELETE_DELTAS = Write(f"DELETE FROM open_deltas {_IN_ROWS}", 2)
#: CROSS JOIN keeps the order of the rows, which is that of the deltas.
_INSERT_DELTAS = Write(
    "INSERT OR ROLLBACK INTO open_deltas (topic_id, seq, deltas) SELECT topic_id, seq, column3"
    " FROM $rows CROSS JOIN open_messages ON topic_id = column1 AND seq = column2",
    3,
)
_SET_PRODUCERS = Write(
    "UPDATE OR ROLLBACK open_messages SET producer = column3, producer_epoch = column4 FROM $rows"
    " WHERE topic_id = column1 AND seq = column2 AND (producer, producer_epoch) IS NOT (column3, column4)",
    4,
)

#: Writes a page only if a receipt advances.
_RAISE_RECEIPTS = Write(
    "INSERT OR ROLLBACK INTO receipts (topic_id, user, delivered, read, updated_ms)"
    " SELECT column1, column2, column3, column4, column5 FROM $rows WHERE column1 IS NOT NULL"
    " ON CONFLICT (topic_id, user) DO UPDATE SET delivered = max(delivered, excluded.delivered),"
    " read = max(read, excluded.read), updated_ms = excluded.updated_ms"
    " WHERE excluded.delivered > delivered OR excluded.read > read",
    5,
)

_INSERT_DELIVERIES = Insert("deliveries", ("delivery_id", "tenant", "agent", "topic_id", "seq", "expires_ms"))
_DELETE_DELIVERIES = "DELETE FROM deliveries WHERE delivery_id IN (SELECT value FROM json_each(?))"
_SET_ATTEMPTS = Write(
    "UPDATE OR ROLLBACK deliveries SET attempts = column2 FROM $rows WHERE delivery_id = column1", 2
)
#: OR IGNORE: if a delivery is dead-lettered twice in one batch, the first one counts.
_INSERT_DEAD_LETTERS = Write(
    "INSERT OR IGNORE INTO dead_letters"
    " (delivery_id, tenant, agent, topic_id, seq, attempts, reason, given_up_ms)"
    " SELECT delivery_id, tenant, agent, topic_id, seq, column2, column3, column4"
    " FROM $rows CROSS JOIN deliveries ON delivery_id = column1",
    4,
)
#: Scans all deliveries of the agent: an index would cost every message for the few that are withdrawn.
_SELECT_WITHDRAWN = (
    "SELECT json_group_array(json_array(delivery_id, topic_id, seq)) FROM deliveries"
    " WHERE tenant = ? AND agent = ?"
    " AND (topic_id, seq) IN"
    " (SELECT json_extract(value, '$[0]'), json_extract(value, '$[1]') FROM json_each(?))"
)
#: OR IGNORE: the first withdrawal of a message counts.
_INSERT_CANCELLED = Write(
    "INSERT OR IGNORE INTO cancelled_messages (topic_id, seq, cancelled_ms)"
    " SELECT column1, column2, column3 FROM $rows WHERE column1 IS NOT NULL",
    3,
)
_SELECT_CANCELLED = Select(
    "column1, column3",
    "$rows CROSS JOIN cancelled_messages ON topic_id = column1 AND seq = column2"
    f" CROSS JOIN topics USING (topic_id) WHERE column3 = {message_id_of('cancelled_messages')}",
    3,
)


def write_batch(db: sqlite3.Connection, batch: Batch) -> None:
    """Write all rows of a batch except those of its keys."""
    fork_logs(db, batch.forks)
    # First the changes of deliveries and open messages, which concern earlier rows.
    _write_delivery_changes(db, batch)
    _write_open_changes(db, batch)
    _INSERT_TOPICS.run(db, batch.topics)
    _INSERT_MESSAGES.run(db, append_checksums(batch.messages, MESSAGE_COLUMNS))
    _INSERT_EVENTS.run(db, append_checksums(batch.events, EVENT_COLUMNS))
    _INSERT_OPENS.run(db, batch.opens)
    # After the withdrawals of this batch.
    rows = _SELECT_CANCELLED.run(db, [value for key in batch.answered for value in key])
    batch.answered_cancelled.update((topic_id, message_id) for topic_id, message_id in rows)
    _INSERT_DELIVERIES.run(db, batch.deliveries)
    _RAISE_RECEIPTS.run(db, batch.receipts)


def _write_delivery_changes(db: sqlite3.Connection, batch: Batch) -> None:
    _delete_deliveries(db, batch.settled)
    for agent, messages in batch.withdrawn.items():
        text = db.execute(_SELECT_WITHDRAWN, (*agent, json.dumps(list(messages)))).fetchone()[0]
        rows = json.loads(text)
        _delete_deliveries(db, [delivery_id for delivery_id, _, _ in rows])
        batch.withdrawn_found.update((topic_id, seq) for _, topic_id, seq in rows)
        _INSERT_CANCELLED.run(db, [value for key in messages for value in (*key, batch.now_ms)])
    if batch.dead_lettered:
        _INSERT_DEAD_LETTERS.run(db, batch.dead_lettered)
        _delete_deliveries(db, batch.dead_lettered[::4])
    _SET_ATTEMPTS.run(db, [value for row in batch.attempts.items() for value in row])


def _delete_deliveries(db: sqlite3.Connection, delivery_ids: Any) -> None:
    if delivery_ids:
        db.execute(_DELETE_DELIVERIES, (json.dumps(list(delivery_ids)),))


def _write_open_changes(db: sqlite3.Connection, batch: Batch) -> None:
    ended = [value for key in batch.ended for value in key]
    # First: deltas of a message that ends need not be written.
    _DELETE_OPENS.run(db, ended)
    _DELETE_DELTAS.run(db, ended)
    _INSERT_DELTAS.run(db, batch.deltas)
    _SET_PRODUCERS.run(db, [v for key, producer in batch.producers.items() for v in (*key, *producer)])
    changed = [
        value
        for (topic_id, seq), (body, user) in batch.changed.items()
        for value in (topic_id, seq, body, user, checksum(topic_id, seq, body))
    ]
    _CHANGE_MESSAGES.run(db, changed)
