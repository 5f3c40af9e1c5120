"""Reads the log. Each read is one statement: it sees one state of the log, and all commits before it."""

from __future__ import annotations

from collections.abc import Sequence

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
from trunkline_router.log.interface import LogDamaged
from trunkline_router.log.message_ids import parse_message_id
from trunkline_router.log.postgres.delivery_rows import (
    count_waiting,
    read_backlogs,
    read_dead_letters,
    read_deliveries,
    read_expired,
)
from trunkline_router.log.postgres.heads import message_id_of
from trunkline_router.log.postgres.page_rows import read_pages
from trunkline_router.log.postgres.read_pool import Connections
from trunkline_router.log.postgres.stored_text import from_column, to_column
from trunkline_router.log.postgres.tenant_reads import read_audit, read_registered
from trunkline_router.log.postgres.texts import is_storable, is_storable_topic, utf8_prefix
from trunkline_router.log.stored_values import StoredValues

#: By its id, which names the epoch that the message was written in.
_MESSAGE = """
    SELECT topic_id, seq, body, crc, epoch, forked FROM topics JOIN messages USING (topic_id)
    WHERE topic_id = coalesce(
        (SELECT topic_id FROM topics WHERE epoch = $1 AND forked < $2),
        (SELECT topic_id FROM former_epochs WHERE epoch = $1 AND $2 BETWEEN first_seq AND last_seq)
    ) AND seq = $2 AND tenant = $3
"""
#: With their deltas, and the first of each log with its cancelled messages, which they may answer.
#:
#: LATERAL with LIMIT fixes the order of the loops: no plan depends on statistics, which new tables lack.
_OPEN_MESSAGES = f"""
    SELECT opened.topic_id, opened.seq, body, crc, epoch, forked,
        tenant, agent, platform, kind, target, producer, producer_epoch,
        (
            SELECT array_agg(deltas ORDER BY delta_id) FROM open_deltas
            WHERE open_deltas.topic_id = opened.topic_id AND open_deltas.seq = opened.seq
        ),
        CASE WHEN place = 1 THEN (
            SELECT array_agg({message_id_of("each", "topics")})
            FROM cancelled_messages AS each WHERE each.topic_id = opened.topic_id
        ) END
    FROM (
        SELECT *, row_number() OVER (PARTITION BY topic_id ORDER BY seq) AS place FROM open_messages
    ) AS opened
    CROSS JOIN LATERAL (SELECT * FROM topics WHERE topics.topic_id = opened.topic_id LIMIT 1) AS topics
    CROSS JOIN LATERAL (
        SELECT body, crc FROM messages
        WHERE messages.topic_id = opened.topic_id AND messages.seq = opened.seq
        LIMIT 1
    ) AS message
    ORDER BY opened.topic_id, opened.seq
"""
_DELIVERED = """
    SELECT number, epoch, coalesce(
        (
            SELECT delivered FROM receipts
            WHERE receipts.topic_id = log.topic_id AND receipts.user_name = asked.user_name
        ), 0
    )
    FROM unnest($1::text[], $2::text[], $3::text[], $4::integer[], $5::text[], $6::text[])
        WITH ORDINALITY AS asked (tenant, agent, platform, kind, target, user_name, number)
    CROSS JOIN LATERAL (
        SELECT topic_id, epoch FROM topics
        WHERE topics.tenant = asked.tenant AND topics.agent = asked.agent
            AND topics.platform = asked.platform AND topics.kind = asked.kind AND topics.target = asked.target
        LIMIT 1
    ) AS log
"""
_RECEIPTS = """
    SELECT user_name, delivered, read, updated_ms FROM receipts
    WHERE topic_id = (
        SELECT topic_id FROM topics
        WHERE tenant = $1 AND agent = $2 AND platform = $3 AND kind = $4 AND target = $5
    ) AND user_name > $6
    ORDER BY user_name LIMIT $7
"""


class Reader:
    """Reads with a few connections. Every method may raise LogUnavailable."""

    def __init__(self, connections: Connections, values: StoredValues, encryption: Encryption) -> None:
        self._connections = connections
        self._values = values
        self._encryption = encryption

    async def pages(self, requests: Sequence[PageRequest]) -> list[Page]:
        """Read one page for each request, each from one snapshot."""
        return await read_pages(self._connections, requests, self._values)

    async def message(self, tenant: str, message_id: str) -> bytes | None:
        """Read one message of a tenant. Raises LogDamaged if it is damaged."""
        parsed = parse_message_id(message_id)
        if parsed is None or not is_storable(tenant):
            return None
        for topic_id, seq, *stored in await self._connections.fetch(_MESSAGE, *parsed, tenant):
            message = self._values.message(tenant, topic_id, seq, *stored)
            if message is None:
                raise LogDamaged(f"entry {seq} of log {topic_id} is damaged")
            return message
        return None

    async def open_messages(self) -> list[StoredOpen]:
        """Read all open messages."""
        found = []
        cancelled: set[tuple[int, str]] = set()
        for topic_id, seq, body, crc, epoch, forked, *rest in await self._connections.fetch(_OPEN_MESSAGES):
            tenant, agent, platform, kind, target, name, producer_epoch, deltas, cancelled_ids = rest
            cancelled.update((topic_id, message_id) for message_id in cancelled_ids or ())
            message = self._values.message(tenant, topic_id, seq, body, crc, epoch, forked)
            plain = [
                value
                for each in deltas or ()
                if (value := self._values.value(tenant, SealedTable.OPEN_DELTAS, topic_id, seq, each))
                is not None
            ]
            # One that is damaged stays open in the log.
            if message is not None and len(plain) == len(deltas or ()):
                topic = (tenant, agent, platform, kind, target)
                is_cancelled = (topic_id, Message.FromString(message).reply_to) in cancelled
                producer = Producer(from_column(name), producer_epoch)
                found.append(StoredOpen(topic, message, producer, plain, is_cancelled))
        return found

    async def deliveries(self, tenant: str, agent: str, after: int, limit: int) -> list[StoredDelivery]:
        """Read the unsettled deliveries of an agent above an id, lowest first."""
        return await read_deliveries(self._connections, tenant, agent, after, limit, self._values)

    async def dead_letters(self, tenant: str, agent: str, after: int, limit: int) -> list[StoredDeadLetter]:
        """Read the dead letters of an agent above an id, lowest first."""
        return await read_dead_letters(self._connections, tenant, agent, after, limit, self._values)

    async def backlogs(self, tenant: str, now_ms: int) -> list[Backlog]:
        """Count the unsettled deliveries and dead letters of each agent."""
        return await read_backlogs(self._connections, tenant, now_ms)

    async def count_waiting(self, tenant: str, agent: str, now_ms: int) -> int:
        """Count the unsettled deliveries of one agent."""
        return await count_waiting(self._connections, tenant, agent, now_ms)

    async def expired(self, after: int, limit: int, now_ms: int) -> ExpiredPage:
        """Read the expired deliveries among the next `limit` of all deliveries above an id."""
        return await read_expired(self._connections, after, limit, now_ms)

    async def delivered(self, users: Sequence[tuple[TopicKey, str]]) -> list[Position]:
        """Read the positions up to which users received logs, in order."""
        found = [EMPTY] * len(users)
        asked = [
            (index, *topic, user) for index, (topic, user) in enumerate(users) if is_storable_topic(topic)
        ]
        if not asked:
            return found
        places, *columns, names = map(list, zip(*asked, strict=True))
        # Any other name has no receipt.
        names = [stored if is_storable(stored := to_column(name)) else None for name in names]
        for number, epoch, seq in await self._connections.fetch(_DELIVERED, *columns, names):
            found[places[number - 1]] = Position(epoch, seq)
        return found

    async def receipts(self, topic: TopicKey, after: str, limit: int) -> list[StoredReceipt]:
        """Read the receipts of a topic's users after `after`, in the order of users."""
        if not is_storable_topic(topic):
            return []
        after = utf8_prefix(to_column(after))
        rows = await self._connections.fetch(_RECEIPTS, *topic, after, limit)
        return [StoredReceipt(from_column(user), *rest) for user, *rest in rows]

    async def registered(self) -> Registered:
        """Read all tenants, API keys and revocations."""
        return await read_registered(self._connections, self._encryption)

    async def audit(self, query: AuditQuery) -> list[tuple[int, AuditRecord]]:
        """Read audit records with their ids, newest first."""
        return await read_audit(self._connections, query)

    async def close(self) -> None:
        """Close the connections."""
        await self._connections.close()
