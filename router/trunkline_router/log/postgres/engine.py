"""The log in a PostgreSQL database, as long as one incarnation of a router owns it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

from trunkline_router.core.values.log_records import (
    Cursor,
    ErasedPiece,
    HistoryLimits,
    Page,
    PageRequest,
    Transaction,
)
from trunkline_router.core.values.stored_records import (
    AuditQuery,
    AuditRecord,
    Backlog,
    ExpiredPage,
    Registered,
    Registration,
    StoredDeadLetter,
    StoredDelivery,
    StoredOpen,
    StoredReceipt,
)
from trunkline_router.core.values.topics import Position, TopicKey
from trunkline_router.log.appender import Appender
from trunkline_router.log.data_keys import DataKeys
from trunkline_router.log.encryption import Encryption
from trunkline_router.log.interface import LogUnavailable
from trunkline_router.log.postgres.batch_writer import BatchWriter
from trunkline_router.log.postgres.dead_letter_replay import replay
from trunkline_router.log.postgres.durability_watch import DurabilityWatch
from trunkline_router.log.postgres.erasure import erase_tenant, erase_user, reset
from trunkline_router.log.postgres.fence import FencedWriter
from trunkline_router.log.postgres.id_blocks import IdBlocks
from trunkline_router.log.postgres.key_store import KeyStore
from trunkline_router.log.postgres.pruning import prune
from trunkline_router.log.postgres.reader import Reader
from trunkline_router.log.postgres.sweeper import Sweeper
from trunkline_router.log.postgres.tenant_rows import write_registration
from trunkline_router.log.stored_values import StoredValues


class PostgresLog:
    """Implements Log with asyncpg. One connection writes, a few others read.

    The caller groups: each `append` is one statement, one round trip and one flush of the server's log.
    """

    def __init__(
        self,
        writer: FencedWriter,
        reader: Reader,
        key_store: KeyStore,
        values: StoredValues,
        encryption: Encryption,
        ids: IdBlocks,
        watch: DurabilityWatch,
        clock: Callable[[], int],
        *,
        keep_keys_ms: int,
        cached_heads: int,
    ) -> None:
        """Use PostgresDatabase."""
        self._writer = writer
        self._watch = watch
        self._reader = reader
        self._key_store = key_store
        self._sweeper = Sweeper(writer)
        self._encryption = encryption
        self._clock = clock
        self._keep_keys_ms = keep_keys_ms
        self._closed = False
        self._values = values
        self._ids = ids
        store = BatchWriter(writer, key_store, ids)
        self._appender = Appender(store, ids.counters, clock, encryption.is_same_content, cached_heads)

    @property
    def can_encrypt(self) -> bool:
        """See Log."""
        return self._encryption.data_keys is not None

    async def use_data_keys(self, data_keys: DataKeys) -> int:
        """See Log."""
        self._check_open()
        return await self._key_store.rewrap(data_keys)

    def head(self, topic: TopicKey) -> Position | None:
        """See Log."""
        self._check_open()
        return self._appender.head(topic)

    async def append(self, transaction: Transaction) -> None:
        """See Log."""
        self._check_open()
        await self._appender.append(transaction)

    async def heads(self, topics: Sequence[TopicKey]) -> list[Position]:
        """See Log."""
        self._check_open()
        heads = await self._appender.look_up(topics)
        return [heads[topic].position for topic in topics]

    async def read(self, requests: Sequence[PageRequest]) -> list[Page]:
        """See Log."""
        self._check_open()
        return await self._reader.pages(requests)

    async def message(self, tenant: str, message_id: str) -> bytes | None:
        """See Log."""
        self._check_open()
        return await self._reader.message(tenant, message_id)

    async def open_messages(self) -> list[StoredOpen]:
        """See Log."""
        self._check_open()
        return await self._reader.open_messages()

    async def reset(self, topic: TopicKey) -> int:
        """See Log."""
        self._check_open()
        try:
            return await reset(self._writer, topic)
        finally:
            self._appender.cached_heads.invalidate((topic,))

    async def deliveries(self, tenant: str, agent: str, after: int, limit: int) -> list[StoredDelivery]:
        """See Log."""
        self._check_open()
        return await self._reader.deliveries(tenant, agent, after, limit)

    async def backlogs(self, tenant: str) -> list[Backlog]:
        """See Log."""
        self._check_open()
        return await self._reader.backlogs(tenant, self._clock())

    async def count_waiting(self, tenant: str, agent: str) -> int:
        """See Log."""
        self._check_open()
        return await self._reader.count_waiting(tenant, agent, self._clock())

    async def expired(self, after: int, limit: int) -> ExpiredPage:
        """See Log."""
        self._check_open()
        return await self._reader.expired(after, limit, self._clock())

    async def dead_letters(self, tenant: str, agent: str, after: int, limit: int) -> list[StoredDeadLetter]:
        """See Log."""
        self._check_open()
        return await self._reader.dead_letters(tenant, agent, after, limit)

    async def replay(self, tenant: str, agent: str, delivery_ids: Sequence[int]) -> list[StoredDelivery]:
        """See Log."""
        self._check_open()
        return await replay(self._writer, self._values, self._ids, tenant, agent, delivery_ids)

    async def delivered(self, users: Sequence[tuple[TopicKey, str]]) -> list[Position]:
        """See Log."""
        self._check_open()
        return await self._reader.delivered(users)

    async def receipts(self, topic: TopicKey, after: str, limit: int) -> list[StoredReceipt]:
        """See Log."""
        self._check_open()
        return await self._reader.receipts(topic, after, limit)

    async def sweep(self, now_ms: int) -> None:
        """See Log."""
        self._check_open()
        await self._sweeper.sweep(now_ms - self._keep_keys_ms)

    async def registered(self) -> Registered:
        """See Log."""
        self._check_open()
        return await self._reader.registered()

    async def register(self, change: Registration) -> None:
        """See Log."""
        self._check_open()
        await self._writer.uninterrupted(self._register(change))

    async def _register(self, change: Registration) -> None:
        async with self._key_store.lock:
            tenants = await self._key_store.seal_registration(change)
            await write_registration(self._writer, change, tenants)
            self._key_store.registered(change)

    async def audit(self, query: AuditQuery) -> list[tuple[int, AuditRecord]]:
        """See Log."""
        self._check_open()
        return await self._reader.audit(query)

    async def erase_tenant(self, tenant: str) -> ErasedPiece:
        """See Log."""
        self._check_open()
        return await self._erase(erase_tenant(self._writer, self._key_store, tenant))

    async def erase_user(self, tenant: str, user: str, cursor: Cursor | None) -> ErasedPiece:
        """See Log."""
        self._check_open()
        erasure = erase_user(self._writer, self._key_store, tenant, user, cursor, self._clock())
        return await self._erase(erasure)

    async def prune(
        self, tenant: str, limits: HistoryLimits, cursor: Cursor | None, now_ms: int
    ) -> ErasedPiece:
        """See Log."""
        self._check_open()
        return await prune(self._writer, tenant, limits, cursor, now_ms)

    async def close(self) -> None:
        """See Log."""
        if not self._closed:
            self._closed = True
            await self._watch.close()
            await self._reader.close()
            await self._writer.close()

    async def _erase(self, erasure: Awaitable[ErasedPiece]) -> ErasedPiece:
        heads = self._appender.cached_heads
        try:
            piece = await erasure
        except BaseException:
            # A cancelled erasure may still succeed, for logs that are not known here.
            heads.invalidate_all()
            raise
        heads.invalidate(piece.topics)
        return piece

    def _check_open(self) -> None:
        if self._closed:
            raise LogUnavailable("the log is closed")
