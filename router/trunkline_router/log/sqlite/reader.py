"""The reading connection. Everything here runs on the log's reader thread."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from trunkline.v1.message_pb2 import Message

from trunkline_router.core.values.log_records import Page, PageRequest, Producer
from trunkline_router.core.values.stored_records import (
    AuditQuery,
    AuditRecord,
    Backlog,
    ExpiredPage,
    Registered,
    StoredDeadLetter,
    StoredDelivery,
    StoredOpen,
    StoredReceipt,
)
from trunkline_router.core.values.topics import EMPTY, Position, TopicKey
from trunkline_router.log.encryption import Encryption, SealedTable
from trunkline_router.log.interface import LogDamaged, LogUnavailable
from trunkline_router.log.message_ids import parse_message_id
from trunkline_router.log.sqlite.audit_rows import read_audit
from trunkline_router.log.sqlite.database_file import connect_reader
from trunkline_router.log.sqlite.delivery_rows import (
    count_waiting,
    read_backlogs,
    read_dead_letters,
    read_deliveries,
    read_expired,
)
from trunkline_router.log.sqlite.page_rows import read_pages
from trunkline_router.log.sqlite.statements import Select, message_id_of
from trunkline_router.log.sqlite.tenant_rows import read_registered
from trunkline_router.log.sqlite.verification import SQLITE_ERRORS, is_corruption
from trunkline_router.log.stored_values import StoredValues

#: By its id, which names the epoch that the message was written in.
_MESSAGE = """
    SELECT topic_id, seq, body, crc, epoch, forked FROM topics JOIN messages USING (topic_id)
    WHERE topic_id = coalesce(
        (SELECT topic_id FROM topics WHERE epoch = ?1 AND ?2 > forked),
        (SELECT topic_id FROM former_epochs WHERE epoch = ?1 AND ?2 BETWEEN first_seq AND last_seq)
    ) AND seq = ?2 AND tenant = ?3
"""
_OPEN_MESSAGES = """
    SELECT topic_id, seq, body, crc, epoch, forked,
        tenant, agent, platform, kind, target, producer, producer_epoch
    FROM open_messages JOIN topics USING (topic_id) JOIN messages USING (topic_id, seq)
    ORDER BY topic_id, seq
"""
#: Those that an open message of the same log may answer.
_CANCELLED = f"""
    SELECT topic_id, {message_id_of("cancelled_messages")}
    FROM cancelled_messages JOIN topics USING (topic_id)
    WHERE topic_id IN (SELECT topic_id FROM open_messages)
"""
_OPEN_DELTAS = "SELECT topic_id, seq, deltas FROM open_deltas ORDER BY delta_id"
_DELIVERED = Select(
    "column1, epoch, coalesce((SELECT delivered FROM receipts"
    " WHERE receipts.topic_id = topics.topic_id AND user = column7), 0)",
    "$rows CROSS JOIN topics ON tenant = column2 AND agent = column3 AND platform = column4"
    " AND kind = column5 AND target = column6",
    7,
)
_RECEIPTS = """
    SELECT json_group_array(json_array(user, delivered, read, updated_ms))
    FROM (
        SELECT user, delivered, read, updated_ms FROM topics JOIN receipts USING (topic_id)
        WHERE tenant = ? AND agent = ? AND platform = ? AND kind = ? AND target = ? AND user > ?
        ORDER BY user LIMIT ?
    )
"""


class Reader:
    """The connection that reads. Every method may raise LogUnavailable."""

    def __init__(self, path: Path, values: StoredValues, encryption: Encryption) -> None:
        self._path = path
        self._values = values
        self._encryption = encryption
        self._db = connect_reader(path)

    def pages(self, requests: Sequence[PageRequest]) -> list[Page]:
        """Read one page for each request, all from one snapshot."""
        with self._snapshot() as db:
            return read_pages(db, requests, self._values)

    def message(self, tenant: str, message_id: str) -> bytes | None:
        """Read one message of a tenant. Raises LogDamaged if it is damaged."""
        parsed = parse_message_id(message_id)
        if parsed is None:
            return None
        with self._snapshot() as db:
            row = db.execute(_MESSAGE, (*parsed, tenant)).fetchone()
        return None if row is None else self._intact(tenant, *row)

    def open_messages(self) -> list[StoredOpen]:
        """Read all open messages.

        Row by row: nothing else runs yet, and JSON would take three times the memory.
        """
        found: dict[tuple[int, int], StoredOpen] = {}
        with self._snapshot() as db:
            for topic_id, seq, *stored, tenant, agent, platform, kind, target, name, epoch in db.execute(
                _OPEN_MESSAGES
            ):
                # One that is damaged stays open in the log.
                with suppress(LogDamaged):
                    message = self._intact(tenant, topic_id, seq, *stored)
                    topic = (tenant, agent, platform, kind, target)
                    found[topic_id, seq] = StoredOpen(topic, message, Producer(name, epoch), [])
            cancelled = set(db.execute(_CANCELLED))
            for (topic_id, seq), opened in found.items() if cancelled else ():
                if (topic_id, Message.FromString(opened.message).reply_to) in cancelled:
                    found[topic_id, seq] = opened._replace(is_cancelled=True)
            for topic_id, seq, deltas in db.execute(_OPEN_DELTAS):
                # None for remains of an erased log.
                if (extended := found.get((topic_id, seq))) is not None:
                    tenant = extended.topic[0]
                    plain = self._values.value(tenant, SealedTable.OPEN_DELTAS, topic_id, seq, deltas)
                    if plain is None:
                        del found[topic_id, seq]
                    else:
                        extended.deltas.append(plain)
        return list(found.values())

    def deliveries(self, tenant: str, agent: str, after: int, limit: int) -> list[StoredDelivery]:
        """Read the unsettled deliveries of an agent above an id, lowest first."""
        with self._snapshot() as db:
            return read_deliveries(db, tenant, agent, after, limit, self._values)

    def dead_letters(self, tenant: str, agent: str, after: int, limit: int) -> list[StoredDeadLetter]:
        """Read the dead letters of an agent above an id, lowest first."""
        with self._snapshot() as db:
            return read_dead_letters(db, tenant, agent, after, limit, self._values)

    def backlogs(self, tenant: str, now_ms: int) -> list[Backlog]:
        """Count the unsettled deliveries and dead letters of each agent."""
        with self._snapshot() as db:
            return read_backlogs(db, tenant, now_ms)

    def count_waiting(self, tenant: str, agent: str, now_ms: int) -> int:
        """Count the unsettled deliveries of one agent."""
        with self._snapshot() as db:
            return count_waiting(db, tenant, agent, now_ms)

    def expired(self, after: int, limit: int, now_ms: int) -> ExpiredPage:
        """Read the expired deliveries among the next `limit` of all deliveries above an id."""
        with self._snapshot() as db:
            return read_expired(db, after, limit, now_ms)

    def delivered(self, users: Sequence[tuple[TopicKey, str]]) -> list[Position]:
        """Read the positions up to which users received logs, in order."""
        flat: list[Any] = []
        for index, (topic, user) in enumerate(users):
            flat += (index, *topic, user)
        found = [EMPTY] * len(users)
        with self._snapshot() as db:
            for index, epoch, seq in _DELIVERED.run(db, flat):
                found[index] = Position(epoch, seq)
        return found

    def receipts(self, topic: TopicKey, after: str, limit: int) -> list[StoredReceipt]:
        """Read the receipts of a topic's users after `after`, in the order of users."""
        with self._snapshot() as db:
            rows = json.loads(db.execute(_RECEIPTS, (*topic, after, limit)).fetchone()[0])
        return [StoredReceipt(*row) for row in sorted(rows)]

    def registered(self) -> Registered:
        """Read all tenants, API keys and revocations."""
        with self._snapshot() as db:
            return read_registered(db, self._encryption)

    def audit(self, query: AuditQuery) -> list[tuple[int, AuditRecord]]:
        """Read audit records with their ids, newest first."""
        with self._snapshot() as db:
            return read_audit(db, query)

    def close(self) -> None:
        """Close the connection."""
        self._db.close()

    def _intact(
        self, tenant: str, topic_id: int, seq: int, stored: bytes, crc: int | None, epoch: str, forked: int
    ) -> bytes:
        """Return a message with the position that it has now. Raises LogDamaged."""
        body = self._values.message(tenant, topic_id, seq, stored, crc, epoch, forked)
        if body is None:
            raise LogDamaged(f"{self._path}: entry {seq} of log {topic_id} is damaged")
        return body

    @contextmanager
    def _snapshot(self) -> Iterator[sqlite3.Connection]:
        try:
            self._db.execute("BEGIN")
            try:
                yield self._db
            finally:
                self._db.rollback()
        except SQLITE_ERRORS as error:
            kind = LogDamaged if is_corruption(error) else LogUnavailable
            raise kind(f"{self._path}: {error}") from error
        except (TypeError, ValueError) as error:
            # A damaged row has NULLs, or values of other types, in its columns.
            raise LogDamaged(f"{self._path}: a row is damaged: {error}") from error
