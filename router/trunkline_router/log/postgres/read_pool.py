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


class Connections:
    """A few connections that read, opened when they are needed. Queries beyond their number wait for one."""

    def __init__(self, connector: Connector, size: int = 4) -> None:
        self._connector = connector
        self._size = size
        self._free = asyncio.Semaphore(size)
        #: Connections that nobody uses; the last one is used first.
        self._idle: list[Connection] = []
        self._closed = False

    async def fetch(self, text: str, *args: object) -> list[asyncpg.Record]:
        """Run a query. Raises LogUnavailable.

        If the database cannot be reached, or the connection breaks, tries again for some seconds.
        """
        async with self._free:
            deadline = asyncio.get_running_loop().time() + READ_PATIENCE_S
            pause_s = FIRST_PAUSE_S
            while True:
                if self._closed:
                    raise LogUnavailable("the log is closed")
                try:
                    async with asyncio.timeout_at(deadline):
                        connection = await self._take()
                    return await self._fetch(connection, text, args)
                except (ConnectFailed, *DATABASE_ERRORS) as error:
                    if asyncio.get_running_loop().time() + pause_s >= deadline:
                        raise refused("read", error) from error
                pause_s = await back_off(pause_s)

    async def close(self) -> None:
        """Close the connections, after the queries under way."""
        self._closed = True
        for _ in range(self._size):
            await self._free.acquire()
        await asyncio.gather(*map(close_connection, self._idle))
        self._idle.clear()
        for _ in range(self._size):
            self._free.release()

    async def _take(self) -> Connection:
        while self._idle:
            connection = self._idle.pop()
            if not connection.is_closed():
                return connection
        return await self._connector.connect()

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
            # Also when cancelled: the answer to a query that nobody awaits would confuse the next one.
            connection.terminate()
            raise
        self._idle.append(connection)
        return rows
