"""Ends a connection whose statement the server neither answers nor works on."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import TypeVar

import structlog

from trunkline_router.log.interface import LogUnavailable
from trunkline_router.log.postgres.connector import CONNECT_TIMEOUT_S, Connection, Connector, server_pid
from trunkline_router.log.postgres.server_errors import DATABASE_ERRORS

_log = structlog.get_logger()
_T = TypeVar("_T")

#: After so long without an answer, the server is asked whether it still works on the statement.
SILENCE_S = 1.5
#: No row: the session is gone, or another server is the primary. A session that is idle, or waits for a
#: message, has nothing to work on.
_WORKS = """
    SELECT state <> 'idle' AND wait_event IS DISTINCT FROM 'ClientRead' FROM pg_stat_activity
    WHERE pid = $1 AND application_name = $2
"""


class SilenceWatch:
    """Watches the statements of one session, which run one after the other.

    When the request is lost, or the answer, or the server, nothing else might ever notice. A statement that
    takes long is left alone.
    """

    def __init__(self, connector: Connector) -> None:
        """`connector` opens the watched connections, too."""
        self._connector = connector
        self._connection: Connection | None = None
        #: Time of the loop at which the running statement was sent; 0 for none.
        self._sent_at = 0.0
        self._task = asyncio.create_task(self._run())

    async def await_answer(self, connection: Connection, statement: Awaitable[_T]) -> _T:
        """Await a statement, which fails like on a broken connection if it is not answered."""
        self._connection = connection
        self._sent_at = asyncio.get_running_loop().time()
        try:
            return await statement
        finally:
            self._sent_at = 0.0

    def close(self) -> None:
        """Stop watching."""
        self._task.cancel()

    async def _run(self) -> None:
        suspect = 0.0
        while True:
            await asyncio.sleep(SILENCE_S)
            connection, sent_at = self._connection, self._sent_at
            if connection is None or not sent_at or asyncio.get_running_loop().time() < sent_at + SILENCE_S:
                continue
            try:
                works = await self._works_on_it(connection)
            except (LogUnavailable, *DATABASE_ERRORS):
                # Nothing is known while the server cannot be reached.
                continue
            if works or self._sent_at != sent_at:
                suspect = 0.0
            elif works is None or suspect == sent_at:
                _log.warning("the database does not answer a statement: ending the connection")
                connection.terminate()
            else:
                # Perhaps a large request is still on its way.
                suspect = sent_at

    async def _works_on_it(self, connection: Connection) -> bool | None:
        """Whether the server works on the statement of a connection; None if it does not know it."""
        other = await self._connector.connect()
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                works: bool | None = await other.fetchval(
                    _WORKS, server_pid(connection), self._connector.application_name
                )
                return works
        finally:
            other.terminate()
