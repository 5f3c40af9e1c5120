"""Warnings about databases that might lose what they confirm, by what a plain role can see."""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

import asyncpg
import pytest
from structlog.testing import capture_logs
from trunkline_router.log.postgres.durability_watch import DurabilityWatch

from tests.support.patience import patient
from tests.support.postgres import DATABASE, PostgresServer
from tests.support.postgres_binaries import programs, run
from tests.support.postgres_template import SUPERUSER


@pytest.fixture(scope="module", params=[18, 16])
def server(request: pytest.FixtureRequest) -> Iterator[PostgresServer]:
    with PostgresServer.create(request.param, wal_level="logical") as started:
        yield started


@asynccontextmanager
async def watch_of(server: PostgresServer) -> AsyncIterator[DurabilityWatch]:
    """A watch that has not looked yet."""
    connection = await asyncpg.connect(server.dsn())
    watch = DurabilityWatch(connection.fetch)
    await watch.close()
    try:
        yield watch
    finally:
        await connection.close()


async def lines(watch: DurabilityWatch, count: int = 0) -> list[str]:
    """Look until there are lines, if some are wanted: changed settings take a moment."""
    with capture_logs() as logs:
        await watch.look()
        async with asyncio.timeout(patient(20)):
            while len(logs) < count:
                await asyncio.sleep(0.01)
                await watch.look()
    return [f"{line['log_level']}: {line.get('problem') or line['event']}" for line in logs]


async def test_a_server_that_syncs_and_has_no_standby_is_fine(server: PostgresServer) -> None:
    async with watch_of(server) as watch:
        assert await lines(watch) == []


@pytest.mark.parametrize("setting", ["fsync", "full_page_writes"])
async def test_unsafe_settings_are_logged_once_and_when_they_are_safe_again(
    server: PostgresServer, setting: str
) -> None:
    async with watch_of(server) as watch:
        await asyncio.to_thread(server.configure, **{setting: "off"})
        (line,) = await lines(watch, 1)
        assert line.startswith("warning: PostgreSQL runs with fsync or full_page_writes off")
        assert await lines(watch) == []
        await asyncio.to_thread(server.configure, **{setting: ""})
        (line,) = await lines(watch, 1)
        assert line.startswith("info: PostgreSQL runs with fsync")


async def test_standbys_are_asynchronous_synchronous_or_gone(server: PostgresServer) -> None:
    async with watch_of(server) as watch:
        standby = await asyncio.to_thread(server.base_backup)
        try:
            (line,) = await lines(watch, 1)
            assert line.startswith("warning: all standbys of PostgreSQL are asynchronous")
            assert "synchronous_standby_names, as 'ANY 1 (*)'" in line
            # The setting that the line names is accepted, and ends it.
            await asyncio.to_thread(server.configure, synchronous_standby_names="ANY 1 (*)")
            (line,) = await lines(watch, 1)
            assert line.startswith("info: all standbys")
            await asyncio.to_thread(standby.stop)
            (line,) = await lines(watch, 1)
            assert line.startswith("warning: PostgreSQL commits nothing")
        finally:
            await asyncio.to_thread(server.configure, synchronous_standby_names="")
            await asyncio.to_thread(standby.close)
        (line,) = await lines(watch, 1)
        assert line.startswith("info: PostgreSQL commits nothing")


@contextmanager
def subscriber(server: PostgresServer) -> Iterator[None]:
    """Receive the changes of a publication."""
    server.execute("CREATE PUBLICATION changes")
    dsn = f"postgresql://{SUPERUSER}@{server.address}/{DATABASE}"
    options = ["--slot=changes", "--plugin=pgoutput", "-d", dsn]
    run(server.version, "pg_recvlogical", *options, "--create-slot")
    options += ["--start", "-o", "proto_version=1", "-o", "publication_names=changes", "-f", "-"]
    program = str(programs(server.version) / "pg_recvlogical")
    with subprocess.Popen([program, *options], stdout=subprocess.DEVNULL, cwd="/") as receiver:
        try:
            server.wait_for("TABLE pg_stat_replication")
            yield
        finally:
            receiver.terminate()


async def test_a_subscriber_of_logical_replication_is_no_standby(server: PostgresServer) -> None:
    with subscriber(server):
        async with watch_of(server) as watch:
            assert await lines(watch) == []
