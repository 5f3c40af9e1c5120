"""Connections that read: what an outage, and callers that go away, cost."""

from __future__ import annotations

import asyncio
import socket

import pytest
from trunkline_router.log.interface import LogUnavailable
from trunkline_router.log.postgres import read_pool
from trunkline_router.log.postgres.connector import Connection, Connector, close_connection
from trunkline_router.log.postgres.dsn import Dsn
from trunkline_router.log.postgres.read_pool import Connections

from tests.router.log.postgres.owned import until
from tests.support.fault_proxy import FaultProxy
from tests.support.postgres import shared_server

UNREACHABLE = "postgresql://nobody:x@127.0.0.1:1/none"


async def test_a_cancelled_read_leaves_its_connection_to_the_next_one(postgres_schema: str) -> None:
    connections = Connections(Connector(Dsn.parse(postgres_schema)), size=1)
    [(pid,)] = await connections.fetch("SELECT pg_backend_pid()")
    for _ in range(3):
        read = asyncio.create_task(connections.fetch("SELECT pg_sleep(0.05)"))
        # It starts, then the query.
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        read.cancel()
        with pytest.raises(asyncio.CancelledError):
            await read
    assert await connections.fetch("SELECT pg_backend_pid()") == [(pid,)]
    await connections.close()


class CountingConnector(Connector):
    attempts = 0

    async def connect(self) -> Connection:
        self.attempts += 1
        return await super().connect()


async def test_reads_that_wait_in_an_outage_fail_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """Once the first one gives up, the others make no attempts of their own, one after the other."""
    monkeypatch.setattr(read_pool, "READ_PATIENCE_S", 0.5)
    connector = CountingConnector(Dsn.parse(UNREACHABLE))
    connections = Connections(connector, size=1)
    reads = [connections.fetch("SELECT 1") for _ in range(60)]
    results = await asyncio.gather(*reads, return_exceptions=True)
    assert {type(result) for result in results} == {LogUnavailable}
    assert connector.attempts < len(reads)
    await connections.close()


async def test_close_does_not_wait_for_a_database_that_is_silent(
    postgres_schema: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(read_pool, "CLOSE_PATIENCE_S", 0.1)
    with FaultProxy(shared_server().address) as proxy:
        connections = Connections(Connector(Dsn.parse(shared_server().dsn(address=proxy.address))))
        await connections.fetch("SELECT 1")
        proxy.stall()
        read = asyncio.create_task(connections.fetch("SELECT 2"))
        await until(lambda: asyncio.sleep(0.01, bool(connections._queries)))
        await connections.close()
        with pytest.raises(LogUnavailable, match="closed before the database answered"):
            await read


async def test_the_system_notices_a_database_that_vanished(postgres_schema: str) -> None:
    connection = await Connector(Dsn.parse(postgres_schema)).connect()
    peer = connection._transport.get_extra_info("socket")
    assert peer.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
    assert peer.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 5_000
    await close_connection(connection)
