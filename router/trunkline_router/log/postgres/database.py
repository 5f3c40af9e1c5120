"""The database of one installation: its schema, and which router owns its log."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Callable
from contextlib import AsyncExitStack, suppress
from pathlib import Path

import structlog
from trunkline_runtime.process import StartError

from trunkline_router.log.append_results import KEEP_KEYS_MS
from trunkline_router.log.data_keys import DataKeyError, DataKeys
from trunkline_router.log.encryption import CannotDecrypt, Encryption
from trunkline_router.log.head_cache import CACHED_HEADS
from trunkline_router.log.interface import LogFenced, LogUnavailable
from trunkline_router.log.ownership import OwnedLog
from trunkline_router.log.postgres.connector import (
    FIRST_PAUSE_S,
    WRITER_SETTINGS,
    ConnectFailed,
    Connection,
    Connector,
    back_off,
)
from trunkline_router.log.postgres.dsn import Dsn
from trunkline_router.log.postgres.durability_watch import DurabilityWatch
from trunkline_router.log.postgres.engine import PostgresLog
from trunkline_router.log.postgres.fence import FencedWriter
from trunkline_router.log.postgres.forks import fork_all
from trunkline_router.log.postgres.id_blocks import IdBlocks
from trunkline_router.log.postgres.installation_file import check_installation
from trunkline_router.log.postgres.key_store import KeyStore
from trunkline_router.log.postgres.lease import PostgresLease
from trunkline_router.log.postgres.read_pool import Connections
from trunkline_router.log.postgres.reader import Reader
from trunkline_router.log.postgres.schema import IS_COPYING, UNFINISHED_COPY, prepare_schema
from trunkline_router.log.postgres.server_errors import DATABASE_ERRORS, explain
from trunkline_router.log.postgres.shared_sessions import refuse_shared_sessions
from trunkline_router.log.postgres.takeover import POLL_S, Ownership, Standby, abandon
from trunkline_router.log.stored_values import StoredValues

_log = structlog.get_logger()

#: Time that a router takes to give up a log that it has just taken.
ABANDON_S = 2.0


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


class PostgresDatabase:
    """Implements LogDatabase."""

    def __init__(
        self,
        dsn: str,
        *,
        data_keys: Callable[[], DataKeys | None] = lambda: None,
        clock: Callable[[], int] = _now_ms,
        lease_s: float = 5,
        address: str = "",
        data_dir: Path | None = None,
        keep_keys_ms: int = KEEP_KEYS_MS,
        cached_heads: int = CACHED_HEADS,
    ) -> None:
        """Connects to nothing yet. Raises StartError.

        `data_keys` loads them when the log is acquired: their file may have changed while this router waited.
        `address` is where this router listens, for people. `data_dir` remembers the installation.
        """
        self._dsn = Dsn.parse(dsn)
        self._data_keys = data_keys
        self._data_dir = data_dir
        self._clock = clock
        self._lease_s = lease_s
        self._address = address
        self._keep_keys_ms = keep_keys_ms
        self._cached_heads = cached_heads
        self._boot_id = secrets.token_hex(8)
        self._has_connected = False
        #: Writer of this router's last ownership, until the database was asked for its last commit.
        self._former: FencedWriter | None = None

    def describe(self) -> str:
        """See LogDatabase."""
        return self._dsn.describe()

    async def acquire(self, must_wait: Callable[[], None]) -> OwnedLog:
        """See LogDatabase."""
        standby = Standby(self._boot_id, self._address, self._lease_s)
        problem, pause_s = "", FIRST_PAUSE_S
        connection: Connection | None = None
        try:
            while True:
                try:
                    if connection is None:
                        connection = await self._connect()
                        await self._check_loss(connection)
                        problem, pause_s = "", FIRST_PAUSE_S
                    if (ownership := await standby.try_to_own(connection)) is not None:
                        return await self._open(ownership)
                except (LogUnavailable, *DATABASE_ERRORS) as error:
                    if str(error) != problem:
                        problem = str(error)
                        _log.warning("the database is not available; trying again", problem=explain(error))
                    if connection is not None:
                        connection.terminate()
                        connection = None
                must_wait()
                if connection is None:
                    pause_s = await back_off(pause_s)
                else:
                    await asyncio.sleep(POLL_S)
        except BaseException:
            # Others need not wait for the end of the lease.
            await self._abandon()
            raise
        finally:
            if connection is not None:
                connection.terminate()

    async def _check_loss(self, connection: Connection) -> None:
        """End every ownership if the commits of this router's last one are missing."""
        if self._former is not None:
            with suppress(LogFenced):
                await self._former.check_loss(connection)
            self._former = None

    async def _abandon(self) -> None:
        """End the ownership that this router has taken, if it has. Never raises but when cancelled again."""
        if self._has_connected:
            with suppress(LogUnavailable, *DATABASE_ERRORS):
                async with asyncio.timeout(ABANDON_S):
                    connection = await Connector(self._dsn).connect()
                    try:
                        await abandon(connection, self._boot_id)
                    finally:
                        connection.terminate()

    async def _connect(self) -> Connection:
        """Connect, and prepare the schema. Raises LogUnavailable and StartError.

        StartError only until this router was connected once: a failover may show for a moment what would
        otherwise be for a person to change.
        """
        try:
            connection = await self._prepared()
        except StartError as error:
            if self._has_connected:
                raise LogUnavailable(str(error)) from None
            raise StartError(f"{error}. TRUNKLINE_DATABASE_URL is {self.describe()}.") from None
        self._has_connected = True
        return connection

    async def _prepared(self) -> Connection:
        connector = Connector(self._dsn)
        try:
            connection = await connector.connect()
        except ConnectFailed as error:
            if error.is_permanent:
                raise StartError(str(error)) from None
            raise
        try:
            if not self._has_connected:
                await refuse_shared_sessions(connection, connector)
            installation_id = await prepare_schema(connection)
            if self._data_dir is not None:
                check_installation(self._data_dir, installation_id)
        except BaseException:
            connection.terminate()
            raise
        return connection

    async def _open(self, ownership: Ownership) -> OwnedLog:
        """Open the log for a new incarnation. If that fails, others take the log as from a dead router."""
        name = ownership.session_name
        connector, readers = Connector(self._dsn, name, WRITER_SETTINGS), Connector(self._dsn, name)
        async with AsyncExitStack() as undo:
            writer = FencedWriter(await connector.connect(), connector, ownership.incarnation)
            undo.push_async_callback(writer.close)
            renewals = await readers.connect()
            lease = PostgresLease(renewals, readers, writer, self._lease_s, ownership.acquired_at)
            undo.push_async_callback(lease.release)
            await _check_copy(writer)
            await _fork_older_copy(writer)
            try:
                encryption = Encryption(self._data_keys())
                key_store = KeyStore(encryption, writer, self._clock)
                await key_store.open()
            except (DataKeyError, CannotDecrypt) as error:
                raise StartError(str(error)) from None
            ids = IdBlocks()
            await ids.open(writer)
            connections = Connections(readers)
            values = StoredValues(encryption)
            log = PostgresLog(
                writer,
                Reader(connections, values, encryption),
                key_store,
                values,
                encryption,
                ids,
                DurabilityWatch(connections.fetch),
                self._clock,
                keep_keys_ms=self._keep_keys_ms,
                cached_heads=self._cached_heads,
            )
            undo.pop_all()
        self._former = writer
        return OwnedLog(log, lease)

    async def close(self) -> None:
        """See LogDatabase."""


async def _check_copy(writer: FencedWriter) -> None:
    """Raise StartError if a log is being copied into the database, perhaps since this router connected."""
    ((is_copying,),) = await writer.read(IS_COPYING)
    if is_copying:
        raise StartError(UNFINISHED_COPY)


async def _fork_older_copy(writer: FencedWriter) -> None:
    """Begin new epochs of all logs if some log was found to lack entries that were committed."""
    ((is_older_copy,),) = await writer.read("SELECT is_older_copy FROM installation")
    if is_older_copy:
        logs = await fork_all(writer)
        _log.error(
            "the database has lost commits, as by a failover to a server that lacked them: clients get"
            " `recovered: false`; revocations, erasures and settings made since must be made again",
            logs=logs,
        )
