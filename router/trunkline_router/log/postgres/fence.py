"""Writes to the log, each of which commits only while its router owns the log."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Coroutine
from functools import lru_cache
from typing import Any, NamedTuple, TypeVar

import asyncpg
import structlog

from trunkline_router.log.interface import LogFenced, LogUnavailable
from trunkline_router.log.postgres.connector import (
    FIRST_PAUSE_S,
    Connection,
    Connector,
    back_off,
    close_connection,
)
from trunkline_router.log.postgres.server_errors import DATABASE_ERRORS, explain, is_refusal, refused
from trunkline_router.log.postgres.silence_watch import SilenceWatch

_log = structlog.get_logger()
_T = TypeVar("_T")

#: `close` waits so long for the outcome of a commit.
CLOSE_PATIENCE_S = 2.0

#: A row while an incarnation, $1, owns the log, which no other can take before the transaction ends.
FENCE = "SELECT 1 FROM routers WHERE incarnation = $1 AND alive FOR SHARE"
#: Takes a commit's number, so that it can never commit, unless it has. The update writes to the server's log:
#: with a synchronous standby, it is confirmed no sooner than the commit that it meets is replicated.
_SETTLE = f"""
    WITH fence AS MATERIALIZED ({FENCE}),
    settled AS (
        INSERT INTO commits (incarnation, batch, void) SELECT $1, $2, true FROM fence
        ON CONFLICT (incarnation, batch) DO UPDATE SET result = commits.result
        RETURNING void, result
    )
    SELECT (SELECT count(*) FROM fence) AS owned, void, result::text
    FROM (SELECT 1) AS one LEFT JOIN settled ON true
"""
#: After a failover to a standby that lacks confirmed commits. The next owner begins new epochs of all logs;
#: the present one, which may have read them already, is not that any more.
_MARK_LOSS = """
    WITH lost AS (
        SELECT WHERE CASE
            -- Of a former owner only the last commit is kept.
            WHEN EXISTS (SELECT FROM routers WHERE incarnation = $1)
            THEN $2 > 0 AND NOT EXISTS (SELECT FROM commits WHERE incarnation = $1 AND batch >= $2)
            -- Its row is deleted after a day at the soonest.
            ELSE $1 > extract(epoch FROM clock_timestamp() - interval '12 hours') * 1000000
        END
    ),
    marked AS (UPDATE installation SET is_older_copy = true FROM lost),
    ended AS (UPDATE routers SET alive = false FROM lost WHERE alive)
    SELECT count(*) FROM lost
"""
_LOOK_UP = "SELECT void, result::text FROM commits WHERE incarnation = $1 AND batch = $2"
_NUMBER = "INSERT INTO commits (incarnation, batch, result) VALUES ($1, $2, $3::text::jsonb)"
_FENCED = "another router owns the log"


class _CommitInDoubt(OSError):
    """The server confirmed a commit that its standby may lack."""


class _Committed(NamedTuple):
    """A statement that was committed."""

    result: Any


class FencedWriter:
    """Commits statements in the name of one incarnation, one after the other.

    Each commit has a number, which is stored with it. If the connection breaks before a statement is
    answered, the writer reconnects and finds out by the number whether it was committed; if not, it runs it
    again. Callers wait meanwhile, without bound.
    """

    def __init__(self, connection: Connection, connector: Connector, incarnation: int) -> None:
        """`connection` is the first of those that `connector` opens."""
        self.incarnation = incarnation
        self._connector = connector
        self._connection: Connection | None = connection
        connection.add_log_listener(self._warned)
        #: Whether the server has sent a warning with the running statement.
        self._has_warning = False
        self._batch = 0
        #: The last commit that callers know of; 0 for none.
        self._confirmed = 0
        #: Held while a statement runs, and until its outcome is known.
        self._lock = asyncio.Lock()
        #: Operations that nobody may interrupt.
        self._operations: set[asyncio.Task[Any]] = set()
        self._is_fenced = False
        #: Called once a write finds that another router owns the log, before the write raises.
        self.on_fenced: Callable[[], None] = lambda: None
        self._closed = False
        self._watch = SilenceWatch(connector)

    async def read(self, text: str, *args: object) -> list[asyncpg.Record]:
        """Run a query on the writer's connection: it sees all commits so far.

        Waits while the database cannot be reached. Raises LogUnavailable if the server refused the query.
        """
        rows: list[asyncpg.Record] = await self.uninterrupted(
            self._repeat(lambda connection: connection.fetch(text, *args))
        )
        return rows

    async def write(self, parts: str, result: str, *args: object) -> Any:
        """Commit one statement. Returns the value of `result`, decoded from JSON.

        `parts` are common table expressions, without WITH. Each that changes rows selects from `fence`, a
        relation of one row, or of none if another router owns the log. `result` is an expression for a jsonb
        value over the parts, or NULL. Parameters of both begin with $3.

        Waits while the database cannot be reached, and until the outcome is known. When cancelled, the
        statement may be committed later; further writes follow it.

        Raises LogFenced, and LogUnavailable if the server refused the statement; nothing was committed then.
        """
        text = _statement(parts, result)

        async def attempt(connection: Connection, batch: int) -> Any:
            row = await connection.fetchrow(text, self.incarnation, batch, *args)
            assert row is not None
            if not row[0]:
                self._fence()
                raise LogFenced(_FENCED)
            return _decode(row[1])

        return await self.uninterrupted(self._commit(attempt))

    async def transaction(self, run: Callable[[Connection], Awaitable[Any]]) -> Any:
        """Commit the statements of `run`, for what one statement cannot do. Returns its result.

        The result is a JSON value. `run` may be called again, if an earlier call was not committed. Like
        `write`.
        """

        async def attempt(connection: Connection, batch: int) -> Any:
            async with connection.transaction():
                if not await connection.fetch(FENCE, self.incarnation):
                    self._fence()
                    raise LogFenced(_FENCED)
                result = await run(connection)
                await connection.execute(_NUMBER, self.incarnation, batch, json.dumps(result))
            return result

        return await self.uninterrupted(self._commit(attempt))

    async def close(self) -> None:
        """Close the connection, after the operations under way.

        If the database cannot be reached, they fail after some seconds: it is not known then whether they
        were committed. Later operations raise LogUnavailable.
        """
        if self._operations:
            await asyncio.wait(self._operations, timeout=CLOSE_PATIENCE_S)
        self._closed = True
        self._watch.close()
        if self._operations:
            # Before they are cancelled: asyncpg would ask the server to cancel the statement.
            self._disconnect()
        for operation in self._operations:
            operation.cancel()
        if self._operations:
            await asyncio.wait(self._operations)
        if self._connection is not None:
            await close_connection(self._connection)
            self._connection = None

    async def _commit(self, attempt: Callable[[Connection, int], Awaitable[Any]]) -> Any:
        async with self._lock:
            pause_s = 0.0
            while True:
                if self._is_fenced:
                    raise LogFenced(_FENCED)
                connection = await self._connected()
                self._batch += 1
                try:
                    result = await self._replicated(connection, attempt(connection, self._batch))
                    self._confirmed = self._batch
                    return result
                except (LogUnavailable, asyncio.CancelledError):
                    raise
                except BaseException as error:
                    if _is_certain(error, connection):
                        raise refused("write", error) from error
                    _log.warning("a commit was not confirmed, looking for it", problem=explain(error))
                    self._disconnect()
                    if (committed := await self._settle(self._batch)) is not None:
                        self._confirmed = self._batch
                        return committed.result
                    if not isinstance(error, DATABASE_ERRORS):
                        raise
                # At once only the first time.
                pause_s = await back_off(pause_s) or FIRST_PAUSE_S

    async def _settle(self, batch: int) -> _Committed | None:
        """Find the outcome of a commit. None: it was not, and never will be, committed. Raises LogFenced."""
        problem, pause_s = "", FIRST_PAUSE_S
        while True:
            try:
                return await self._attempt_settle(batch)
            except DATABASE_ERRORS as error:
                if explain(error) != problem:
                    problem = explain(error)
                    _log.warning("cannot find the outcome of a commit yet", problem=problem)
                if not is_refusal(error):
                    self._disconnect()
            pause_s = await back_off(pause_s)

    async def _attempt_settle(self, batch: int) -> _Committed | None:
        connection = await self._connected()
        settling = connection.fetchrow(_SETTLE, self.incarnation, batch)
        row = await self._replicated(connection, settling)
        owned = bool(row["owned"])
        if not owned:
            # The fence closed after the last commit, so that this reads its final state.
            looking_up = connection.fetchrow(_LOOK_UP, self.incarnation, batch)
            row = await self._watch.await_answer(connection, looking_up)
            self._fence()
        if row is not None and not row["void"]:
            return _Committed(_decode(row["result"]))
        if not owned:
            raise LogFenced(_FENCED)
        return None

    def _fence(self) -> None:
        if not self._is_fenced:
            self._is_fenced = True
            self.on_fenced()

    async def _repeat(self, query: Callable[[Connection], Awaitable[_T]]) -> _T:
        async with self._lock:
            pause_s = FIRST_PAUSE_S
            while True:
                connection = await self._connected()
                try:
                    return await self._watch.await_answer(connection, query(connection))
                except DATABASE_ERRORS as error:
                    if _is_certain(error, connection):
                        raise refused("read", error) from error
                    self._disconnect()
                pause_s = await back_off(pause_s)

    async def _connected(self) -> Connection:
        if self._closed:
            raise LogUnavailable("the log is closed")
        pause_s = FIRST_PAUSE_S
        while self._connection is None or self._connection.is_closed():
            self._connection = await self._connector.reconnect()
            self._connection.add_log_listener(self._warned)
            if not self._is_fenced:
                try:
                    await self._watch.await_answer(self._connection, self.check_loss(self._connection))
                except DATABASE_ERRORS as error:
                    _log.warning("cannot look for the last commit yet", problem=explain(error))
                    self._disconnect()
                    pause_s = await back_off(pause_s)
        return self._connection

    async def check_loss(self, connection: Connection) -> None:
        """End every ownership if a server lacks confirmed commits, as after a failover. Raises LogFenced.

        Call it with each new connection, before anything that was read with it is used, and with the first
        one after this ownership, even if the writer is closed.
        """
        if await connection.fetchval(_MARK_LOSS, self.incarnation, self._confirmed):
            _log.error(
                "the database lacks commits that it had confirmed, as after a failover to an asynchronous"
                " standby: all logs get new epochs"
            )
            self._fence()
            raise LogFenced("the database lacks commits that it had confirmed")

    def _warned(self, _: object, message: asyncpg.PostgresLogMessage) -> None:
        self._has_warning |= message.severity_en == "WARNING"

    def _disconnect(self) -> None:
        if self._connection is not None:
            self._connection.terminate()
            self._connection = None

    async def _replicated(self, connection: Connection, statement: Awaitable[_T]) -> _T:
        """Await a commit. A person may end its wait for a synchronous standby, of which the server warns."""
        self._has_warning = False
        result = await self._watch.await_answer(connection, statement)
        if self._has_warning:
            raise _CommitInDoubt("the server sent a warning")
        return result

    async def uninterrupted(self, operation: Coroutine[Any, Any, _T]) -> _T:
        """Run an operation that goes on when the caller is cancelled; `close` waits for it.

        asyncpg would cancel the statement, and what follows the commit in memory would be left out.
        """
        task = asyncio.create_task(operation)
        self._operations.add(task)
        task.add_done_callback(self._ended)
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            if task.cancelled():
                raise LogUnavailable("the log was closed before the database answered") from None
            raise

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._operations.discard(task)
        if not task.cancelled():
            # Retrieved, if nobody awaits it any more.
            task.exception()


def _is_certain(error: BaseException, connection: Connection) -> bool:
    """Whether a statement failed for sure, and the connection is still usable."""
    # asyncpg raises InterfaceError before it sends anything; on an open connection, the arguments are wrong.
    return is_refusal(error) or (isinstance(error, asyncpg.InterfaceError) and not connection.is_closed())


@lru_cache(maxsize=512)
def _statement(parts: str, result: str) -> str:
    return f"""
        WITH fence AS MATERIALIZED ({FENCE}),
        {parts + "," if parts else ""}
        committed AS (
            INSERT INTO commits (incarnation, batch, result) SELECT $1, $2, {result} FROM fence
            RETURNING result
        )
        SELECT count(*), min(result::text) FROM committed
    """


def _decode(result: str | None) -> Any:
    return None if result is None else json.loads(result)
