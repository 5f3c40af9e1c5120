"""Connections that read the log, for queries at the same time."""

from __future__ import annotations

import asyncio

import asyncpg

from trunkline_router.log.interface import LogUnavailable
from trunkline_router.log.postgres.connector import (
    FIRST_PAUSE_S,
    ConnectFailed,
    Connection,
    Connector,
    back_off,
    close_connection,
)
from trunkline_router.log.postgres.server_errors import DATABASE_ERRORS, is_refusal, refused

#: A reader without a working connection waits so long.
READ_PATIENCE_S = 5.0
#: A query without an answer for so long ends its connection.
READ_TIMEOUT_S = 30.0
#: So does one that nobody awaits any more, after so long.
CANCELLED_TIMEOUT_S = 0.5
#: `close` waits so long for the queries under way.
CLOSE_PATIENCE_S = 2.0


class Connections:
    """A few connections that read, opened when they are needed. Queries beyond their number wait for one."""

    def __init__(self, connector: Connector, size: int = 4) -> None:
        self._connector = connector
        self._size = size
        self._free = asyncio.Semaphore(size)
        #: Connections that nobody uses; the last one is used first.
        self._idle: list[Connection] = []
        #: Queries under way, each with a place of `_free`.
        self._queries: set[asyncio.Task[list[asyncpg.Record]]] = set()
        #: The last failure to connect, and its time; None once a query succeeds.
        self._failure: tuple[BaseException, float] | None = None
        self._closed = False

    async def fetch(self, text: str, *args: object) -> list[asyncpg.Record]:
        """Run a query. Raises LogUnavailable.

        If the database cannot be reached, or the connection breaks, tries again for some seconds. When
        cancelled, the query goes on for a moment: to end it costs the connection, and clients cancel calls
        often.
        """
        loop = asyncio.get_running_loop()
        began = loop.time()
        await self._free.acquire()
        query = asyncio.create_task(self._repeat(began, text, args))
        self._queries.add(query)
        query.add_done_callback(self._ended)
        try:
            return await asyncio.shield(query)
        except asyncio.CancelledError:
            if query.cancelled():
                raise LogUnavailable("the log was closed before the database answered") from None
            loop.call_later(CANCELLED_TIMEOUT_S, query.cancel)
            raise

    def _ended(self, query: asyncio.Task[list[asyncpg.Record]]) -> None:
        self._queries.discard(query)
        self._free.release()
        if not query.cancelled():
            # Retrieved, if nobody awaits it any more.
            query.exception()

    async def _repeat(self, began: float, text: str, args: tuple[object, ...]) -> list[asyncpg.Record]:
        time = asyncio.get_running_loop().time
        deadline = time() + READ_PATIENCE_S
        if self._failure is not None and began < self._failure[1] and time() >= began + READ_PATIENCE_S:
            # Those that wait for a place in an outage fail with the first ones.
            raise refused("read", self._failure[0]) from self._failure[0]
        pause_s = FIRST_PAUSE_S
        while True:
            if self._closed:
                raise LogUnavailable("the log is closed")
            try:
                connection = await self._take(deadline)
                rows = await self._fetch(connection, text, args)
            except (ConnectFailed, *DATABASE_ERRORS) as error:
                if time() + pause_s >= deadline:
                    raise refused("read", error) from error
            else:
                self._failure = None
                return rows
            pause_s = await back_off(pause_s)

    async def close(self) -> None:
        """Close the connections, after the queries under way; those that take long fail."""
        self._closed = True
        if self._queries:
            await asyncio.wait(self._queries, timeout=CLOSE_PATIENCE_S)
        for query in self._queries:
            query.cancel()
        for _ in range(self._size):
            await self._free.acquire()
        await asyncio.gather(*map(close_connection, self._idle))
        self._idle.clear()
        for _ in range(self._size):
            self._free.release()

    async def _take(self, deadline: float) -> Connection:
        while self._idle:
            connection = self._idle.pop()
            if not connection.is_closed():
                return connection
        try:
            async with asyncio.timeout_at(deadline):
                return await self._connector.connect()
        except (ConnectFailed, TimeoutError) as error:
            self._failure = error, asyncio.get_running_loop().time()
            raise

    async def _fetch(
        self, connection: Connection, text: str, args: tuple[object, ...]
    ) -> list[asyncpg.Record]:
        try:
            async with asyncio.timeout(READ_TIMEOUT_S):
                rows: list[asyncpg.Record] = await connection.fetch(text, *args)
        except BaseException as error:
            if is_refusal(error):
                self._idle.append(connection)
                raise refused("read", error) from error
            connection.terminate()
            raise
        self._idle.append(connection)
        return rows
