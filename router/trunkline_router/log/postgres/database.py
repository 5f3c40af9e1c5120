"""The database of one installation: its schema, and which router owns its log."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from pathlib import Path

from trunkline_router.log.data_keys import DataKeys
from trunkline_router.log.encryption import Encryption
from trunkline_router.log.ownership import OwnedLog
from trunkline_router.log.postgres.connector import WRITER_SETTINGS, Connector, close_connection
from trunkline_router.log.postgres.dsn import Dsn
from trunkline_router.log.postgres.engine import PostgresLog
from trunkline_router.log.postgres.fence import FencedWriter
from trunkline_router.log.postgres.id_blocks import IdBlocks
from trunkline_router.log.postgres.key_store import KeyStore
from trunkline_router.log.postgres.lease import PostgresLease
from trunkline_router.log.postgres.read_pool import Connections
from trunkline_router.log.postgres.reader import Reader
from trunkline_router.log.stored_values import StoredValues

_SCHEMA = Path(__file__).with_name("schema.sql")
_HOUR_MS = 3_600_000


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


class PostgresDatabase:
    """Implements LogDatabase."""

    def __init__(
        self,
        dsn: str,
        *,
        data_keys: DataKeys | None = None,
        clock: Callable[[], int] = _now_ms,
        lease_s: float = 5,
        address: str = "",
        keep_keys_ms: int = 26 * _HOUR_MS,
        cached_heads: int = 100_000,
    ) -> None:
        """Connects to nothing yet. Raises StartError. `address` is where this router listens, for people."""
        self._dsn = Dsn.parse(dsn)
        self._data_keys = data_keys
        self._clock = clock
        self._lease_s = lease_s
        self._address = address
        self._keep_keys_ms = keep_keys_ms
        self._cached_heads = cached_heads
        self._boot_id = secrets.token_hex(8)

    def describe(self) -> str:
        """See LogDatabase."""
        return self._dsn.describe()

    async def acquire(self, must_wait: Callable[[], None]) -> OwnedLog:
        """See LogDatabase."""
        first = await Connector(self._dsn).reconnect()
        try:
            if not await first.fetchval("SELECT to_regclass('installation')"):
                await first.execute(_SCHEMA.read_text())
            incarnation = await first.fetchval(
                "INSERT INTO routers (boot_id, address) VALUES ($1, $2) RETURNING incarnation",
                self._boot_id,
                self._address,
            )
        finally:
            await close_connection(first)
        name = f"trunkline {incarnation}"
        connector = Connector(self._dsn, name, WRITER_SETTINGS)
        writer = FencedWriter(await connector.connect(), connector, incarnation)
        encryption = Encryption(self._data_keys)
        key_store = KeyStore(encryption, writer, self._clock)
        await key_store.open()
        ids = IdBlocks()
        await ids.open(writer)
        connections = Connections(Connector(self._dsn, name))
        log = PostgresLog(
            writer,
            Reader(connections, StoredValues(encryption), encryption),
            key_store,
            encryption,
            ids,
            self._clock,
            keep_keys_ms=self._keep_keys_ms,
            cached_heads=self._cached_heads,
        )
        return OwnedLog(log, PostgresLease())

    async def close(self) -> None:
        """See LogDatabase."""
