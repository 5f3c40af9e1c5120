"""Reads and writes the log in a database for a copy."""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress

from trunkline_runtime.process import StartError

from trunkline_router.log.encryption import is_sealed
from trunkline_router.log.interface import LogUnavailable
from trunkline_router.log.migration.copied_log import (
    COPYING,
    PIECE_BYTES,
    PIECE_ROWS,
    CopyFailed,
    HighestIds,
    LogVersion,
    Piece,
    RowKey,
)
from trunkline_router.log.migration.copied_tables import (
    DEAD_LETTERS,
    IDEMPOTENCY,
    TABLES,
    CopiedTable,
    Row,
)
from trunkline_router.log.migration.copy_statements import (
    CopyStatements,
    counting,
    deleting,
    deleting_all,
    selected,
    without_ordinals,
)
from trunkline_router.log.postgres.claim import claim
from trunkline_router.log.postgres.connector import Connection, Connector, close_connection
from trunkline_router.log.postgres.dsn import Dsn
from trunkline_router.log.postgres.fence import FENCE
from trunkline_router.log.postgres.restored import fork_restored
from trunkline_router.log.postgres.server_errors import DATABASE_ERRORS, explain
from trunkline_router.log.postgres.stored_text import from_column, to_column
from trunkline_router.log.postgres.verification import check_database

_STATEMENTS = CopyStatements("user_name", "JOIN", "")
_PARAMETER = re.compile(r":(tenant|audit_id|log_key|k\d)\b")
_LAST_COMMIT = """
    coalesce((
        SELECT incarnation || '.' || batch FROM commits ORDER BY incarnation DESC, batch DESC LIMIT 1
    ), '')
"""
_VERSION = f"SELECT installation_id, {_LAST_COMMIT} FROM installation"
#: A role that only reads and writes tables cannot see the sequence.
_HIGHEST_IDS = """
    SELECT (SELECT reserved FROM id_blocks WHERE name = 'topics'),
        (SELECT reserved FROM id_blocks WHERE name = 'deliveries'),
        greatest(
            (SELECT max(id) FROM audit),
            CASE WHEN has_sequence_privilege(pg_get_serial_sequence('audit', 'id'), 'SELECT')
            THEN pg_sequence_last_value(pg_get_serial_sequence('audit', 'id')::regclass) END,
            0
        )
"""
_IS_OLDER_COPY = "SELECT is_older_copy FROM installation"
_BEGIN_COPY = "UPDATE installation SET schema_version = schema_version + $1 WHERE schema_version < $1"
_END_COPY = "UPDATE installation SET schema_version = schema_version - $1 WHERE schema_version >= $1"
_CREATE_STATE = (
    "CREATE TABLE IF NOT EXISTS copy_state"
    " (id integer PRIMARY KEY CHECK (id = 1), state text NOT NULL, last_commit text)"
)
_SAVE = """
    INSERT INTO copy_state VALUES (1, $1, NULL)
    ON CONFLICT (id) DO UPDATE SET state = excluded.state, last_commit = NULL
"""
_COMPLETE = f"UPDATE copy_state SET last_commit = {_LAST_COMMIT}"
_LOAD = f"SELECT state FROM copy_state WHERE last_commit IS NULL OR last_commit = {_LAST_COMMIT}"
#: Tables with texts that may contain NUL.
_ESCAPED = {"api_keys", "audit", "open_messages", "revocations"}
#: Rows read first of each table; then as many as fit a piece.
_FIRST_ROWS = 64


#: Of a session that reads whole tables, and waits for the other log meanwhile.
_SESSION = {
    "idle_in_transaction_session_timeout": "0",
    "plan_cache_mode": "auto",
    "enable_seqscan": "on",
}


async def open_copied(url: str, *, is_target: bool, may_create: bool) -> CopiedDatabase:
    """Own a database for a copy; a target's tables may be created. Raises CopyFailed."""
    dsn = _parse(url)
    async with AsyncExitStack() as stack:
        with _failures(dsn):
            claimed = await stack.enter_async_context(
                claim(dsn, may_be_copying=is_target, may_install=may_create)
            )
            connector = Connector(dsn, claimed.session_name, _SESSION)
            connection = await connector.connect()
            stack.push_async_callback(close_connection, connection)
            if not is_target and await connection.fetchval(_IS_OLDER_COPY):
                raise CopyFailed(f"{dsn.describe()} has lost commits: start a router on it once")
        return CopiedDatabase(dsn, connection, claimed.incarnation, stack.pop_all())


async def fork_restored_log(url: str) -> int:
    """Begin a new epoch of every log of a restored database. Returns their number. Raises CopyFailed."""
    dsn = _parse(url)
    with _failures(dsn):
        async with claim(dsn) as claimed:
            return await fork_restored(claimed.writer)


async def check_log(url: str) -> list[str]:
    """Verify the log in a database, whether a router runs or not. Returns its problems.

    Raises CopyFailed, and BackupFailed if there is no log.
    """
    dsn = _parse(url)
    with _failures(dsn):
        connection = await Connector(dsn, settings=_SESSION).connect()
        try:
            return await check_database(connection)
        finally:
            await close_connection(connection)


def _parse(url: str) -> Dsn:
    with _failures(None):
        return Dsn.parse(url)


@contextmanager
def _failures(dsn: Dsn | None) -> Iterator[None]:
    """Turn failures of a database into CopyFailed."""
    try:
        yield
    except (LogUnavailable, StartError) as error:
        raise CopyFailed(f"{dsn.describe()}: {error}" if dsn else str(error)) from error
    except DATABASE_ERRORS as error:
        raise CopyFailed(f"{dsn.describe()}: {explain(error)}" if dsn else explain(error)) from error


class CopiedDatabase:
    """Implements CopiedLog. Its writes commit only while its incarnation owns the log."""

    def __init__(self, dsn: Dsn, connection: Connection, incarnation: int, resources: AsyncExitStack) -> None:
        """Use `open_copied`. `resources` end the ownership."""
        self._dsn = dsn
        self._connection = connection
        self._incarnation = incarnation
        self._resources = resources

    def describe(self) -> str:
        """See CopiedLog."""
        return self._dsn.describe()

    async def version(self) -> LogVersion:
        """See CopiedLog."""
        with _failures(self._dsn):
            async with self._connection.transaction():
                await self._check_owner()
                row = await self._connection.fetchrow(_VERSION)
        assert row is not None
        return LogVersion(*row)

    async def highest_ids(self) -> HighestIds:
        """See CopiedLog."""
        with _failures(self._dsn):
            row = await self._connection.fetchrow(_HIGHEST_IDS)
        assert row is not None
        return HighestIds(*row)

    async def count(self, table: CopiedTable, tenant: str | None) -> int:
        """See CopiedLog."""
        query, values = _positional(counting(table, tenant), {"tenant": tenant})
        with _failures(self._dsn):
            count: int = await self._connection.fetchval(query, *values)
        return count

    async def pieces(
        self, table: CopiedTable, tenant: str | None, after: RowKey | None
    ) -> AsyncGenerator[Piece]:
        """See CopiedLog."""
        query = _STATEMENTS.selecting(table, tenant, is_continued=after is not None)
        query, values = _positional(query, selected(tenant, after))
        keys = [table.column(each) for each in table.key]
        count = _FIRST_ROWS
        with _failures(self._dsn):
            async with self._connection.transaction(isolation="repeatable_read", readonly=True):
                cursor = await self._connection.cursor(query, *values)
                while found := await cursor.fetch(count):
                    rows = [tuple(row) for row in found]
                    size = sum(
                        [len(value) for row in rows for value in row if isinstance(value, bytes | str)]
                    )
                    count = max(1, min(PIECE_ROWS, PIECE_BYTES * len(rows) // max(size, 1)))
                    last = tuple(rows[-1][each] for each in keys)
                    yield Piece(_neutral(table, rows), last)

    async def load_state(self) -> str | None:
        """See CopiedLog."""
        with _failures(self._dsn):
            if await self._connection.fetchval("SELECT to_regclass('copy_state')") is None:
                return None
            state: str | None = await self._connection.fetchval(_LOAD)
        return state

    async def begin(self, state: str) -> None:
        """See CopiedLog."""
        async with self._transaction():
            await self._connection.execute(_CREATE_STATE)
            await self._connection.execute(_SAVE, state)
            await self._connection.execute(_BEGIN_COPY, COPYING)

    async def write(self, table: CopiedTable, rows: Sequence[Row], state: str) -> None:
        """See CopiedLog."""
        async with self._transaction():
            if rows:
                # A crash costs rows that are copied again: only the end must be on disk at once.
                await self._connection.execute("SET LOCAL synchronous_commit = off")
                await self._connection.copy_records_to_table(
                    table.name, records=_native(table, rows), columns=_STATEMENTS.inserted_columns(table)
                )
            await self._connection.execute(_SAVE, state)

    async def delete(self, tenant: str | None, audit_id: int, log_key: int) -> None:
        """See CopiedLog."""
        named = {"tenant": tenant, "audit_id": audit_id, "log_key": log_key}
        async with self._transaction():
            for text in deleting_all(tenant):
                statement, values = _positional(text, named)
                await self._connection.execute(statement, *values)

    async def delete_keys(self, tenant: str) -> None:
        """See CopiedLog."""
        statement, values = _positional(deleting(IDEMPOTENCY, tenant), {"tenant": tenant})
        async with self._transaction():
            await self._connection.execute(statement, *values)

    async def finish(self, ids: HighestIds, state: str, *, is_complete: bool) -> None:
        """See CopiedLog."""
        async with self._transaction():
            for name, highest in (("topics", ids.topic), ("deliveries", ids.delivery)):
                await self._connection.execute(
                    "UPDATE id_blocks SET reserved = greatest(reserved, $2) WHERE name = $1", name, highest
                )
            if ids.audit:
                await self._connection.execute(
                    "SELECT setval(pg_get_serial_sequence('audit', 'id'), $1)", ids.audit
                )
            await self._connection.execute(_SAVE, state)
            if is_complete:
                await self._connection.execute(_COMPLETE)
                await self._connection.execute(_END_COPY, COPYING)
        if is_complete:
            # The first router plans with statistics; without them, it is only slower at first.
            with suppress(CopyFailed), _failures(self._dsn):
                await self._connection.execute(f"ANALYZE {', '.join(each.name for each in TABLES)}")

    async def forget(self) -> None:
        """See CopiedLog."""
        async with self._transaction():
            await self._connection.execute("DROP TABLE IF EXISTS copy_state")
            await self._connection.execute(_END_COPY, COPYING)

    async def aclose(self) -> None:
        """See CopiedLog."""
        await self._resources.aclose()

    async def _check_owner(self) -> None:
        if not await self._connection.fetchval(FENCE, self._incarnation):
            raise CopyFailed(f"{self._dsn.describe()}: a router took the log over")

    @asynccontextmanager
    async def _transaction(self) -> AsyncIterator[None]:
        with _failures(self._dsn):
            async with self._connection.transaction():
                await self._check_owner()
                yield


def _positional(text: str, values: Mapping[str, object]) -> tuple[str, list[object]]:
    """Number the parameters of a statement, and put their values in order."""
    names = list(dict.fromkeys(_PARAMETER.findall(text)))
    numbered = _PARAMETER.sub(lambda match: f"${names.index(match[1]) + 1}", text)
    return numbered, [values[name] for name in names]


def _neutral(table: CopiedTable, rows: list[Row]) -> list[Row]:
    """Turn rows of this engine into those of all."""
    if table.name in _ESCAPED:
        rows = [
            tuple(from_column(value) if isinstance(value, str) else value for value in row) for row in rows
        ]
    if table.name == "api_keys":
        return [(*row[:4], tuple(row[4]), *row[5:]) for row in rows]
    if table is DEAD_LETTERS:
        return [(*row[:6], _reason(row[6]), row[7]) for row in rows]
    return rows


def _reason(stored: bytes) -> str | bytes:
    return stored if is_sealed(stored) else from_column(stored.decode())


def _native(table: CopiedTable, rows: Sequence[Row]) -> Sequence[Row]:
    """Turn rows of all engines into those of this one."""
    if table.name in _ESCAPED:
        return [tuple(to_column(value) if isinstance(value, str) else value for value in row) for row in rows]
    if table is DEAD_LETTERS:
        return [
            (*row[:6], row[6] if isinstance(row[6], bytes) else to_column(row[6]).encode(), row[7])
            for row in rows
        ]
    return without_ordinals(table, rows)
