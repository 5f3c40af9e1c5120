"""Reads the log. Each query sees one state of the log, and all commits before it."""

from __future__ import annotations

from collections.abc import Sequence

from trunkline_router.core.values.log_records import Page, PageRequest
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
from trunkline_router.core.values.topics import Position, TopicKey
from trunkline_router.log.encryption import Encryption
from trunkline_router.log.postgres.connections import Connections
from trunkline_router.log.stored_values import StoredValues


class Reader:
    """Reads with a few connections. Every method may raise LogUnavailable."""

    def __init__(self, connections: Connections, values: StoredValues, encryption: Encryption) -> None:
        self._connections = connections
        self._values = values
        self._encryption = encryption

    async def pages(self, requests: Sequence[PageRequest]) -> list[Page]:
        """Read one page for each request."""
        raise NotImplementedError

    async def message(self, tenant: str, message_id: str) -> bytes | None:
        """Read one message of a tenant. Raises LogDamaged if it is damaged."""
        raise NotImplementedError

    async def open_messages(self) -> list[StoredOpen]:
        """Read all open messages."""
        raise NotImplementedError

    async def deliveries(self, tenant: str, agent: str, after: int, limit: int) -> list[StoredDelivery]:
        """Read the unsettled deliveries of an agent above an id, lowest first."""
        raise NotImplementedError

    async def dead_letters(self, tenant: str, agent: str, after: int, limit: int) -> list[StoredDeadLetter]:
        """Read the dead letters of an agent above an id, lowest first."""
        raise NotImplementedError

    async def backlogs(self, tenant: str, now_ms: int) -> list[Backlog]:
        """Count the unsettled deliveries and dead letters of each agent."""
        raise NotImplementedError

    async def count_waiting(self, tenant: str, agent: str, now_ms: int) -> int:
        """Count the unsettled deliveries of one agent."""
        raise NotImplementedError

    async def expired(self, after: int, limit: int, now_ms: int) -> ExpiredPage:
        """Read the expired deliveries among the next `limit` of all deliveries above an id."""
        raise NotImplementedError

    async def delivered(self, users: Sequence[tuple[TopicKey, str]]) -> list[Position]:
        """Read the positions up to which users received logs, in order."""
        raise NotImplementedError

    async def receipts(self, topic: TopicKey, after: str, limit: int) -> list[StoredReceipt]:
        """Read the receipts of a topic's users after `after`, in the order of users."""
        raise NotImplementedError

    async def registered(self) -> Registered:
        """Read all tenants, API keys and revocations."""
        raise NotImplementedError

    async def audit(self, query: AuditQuery) -> list[tuple[int, AuditRecord]]:
        """Read audit records with their ids, newest first."""
        raise NotImplementedError

    async def close(self) -> None:
        """Close the connections."""
        await self._connections.close()
