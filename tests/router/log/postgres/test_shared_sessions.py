"""Connection poolers in transaction mode are refused."""

from __future__ import annotations

from typing import Any

import pytest
from trunkline_router.log.postgres.connector import ConnectFailed, Connection, Connector
from trunkline_router.log.postgres.dsn import Dsn
from trunkline_router.log.postgres.shared_sessions import refuse_shared_sessions
from trunkline_runtime.process import StartError


class Pooled:
    """A connection that the pooler passes on to the server's process of another one."""

    def __init__(self, shared: Connection) -> None:
        self._shared = shared

    async def fetchval(self, text: str) -> Any:
        return await self._shared.fetchval(text)

    async def close(self, timeout: float) -> None:
        """Nothing of its own to close."""


class PoolerConnector(Connector):
    """Connects to a pooler; or fails, with `problem`."""

    def __init__(self, shared: Connection, problem: str = "") -> None:
        self._shared = shared
        self._problem = problem

    async def connect(self) -> Any:
        if self._problem:
            raise ConnectFailed(self._problem, is_permanent=False)
        return Pooled(self._shared)


async def test_sessions_that_share_a_process_are_refused(postgres_schema: str) -> None:
    connector = Connector(Dsn.parse(postgres_schema))
    connection = await connector.connect()
    try:
        await refuse_shared_sessions(connection, connector)
        with pytest.raises(StartError, match="session mode"):
            await refuse_shared_sessions(connection, PoolerConnector(connection))
        problem = "a prepared statement exists already; a connection pooler must use session mode"
        with pytest.raises(StartError, match="must use session mode"):
            await refuse_shared_sessions(connection, PoolerConnector(connection, problem))
        with pytest.raises(ConnectFailed, match="refused"):
            await refuse_shared_sessions(connection, PoolerConnector(connection, "connection refused"))
    finally:
        await connection.close()
