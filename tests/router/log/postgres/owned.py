"""Writers of a router that owns the log, on a real server."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import asyncpg
from trunkline_router.log.postgres import database
from trunkline_router.log.postgres.connector import WRITER_SETTINGS, Connector
from trunkline_router.log.postgres.dsn import Dsn
from trunkline_router.log.postgres.fence import FencedWriter

from tests.support.patience import patient

SCHEMA = Path(database.__file__).with_name("schema.sql")
#: Inserts a row of `audit`, for statements whose effect is looked at.
NOTE = """
    note AS (
        INSERT INTO audit (at_ms, tenant, actor, source, action, target, before, after)
        SELECT 0, '', '', '', $3::text, '', '', '' FROM fence RETURNING id, action
    )
"""
NOTED = "(SELECT to_jsonb(action) FROM note)"


async def install(dsn: str) -> int:
    """Install the schema if it is missing, and register a router. Returns its incarnation."""
    connection = await asyncpg.connect(dsn)
    try:
        if not await connection.fetchval("SELECT to_regclass('installation')"):
            await connection.execute(SCHEMA.read_text())
        incarnation: int = await connection.fetchval(
            "INSERT INTO routers (boot_id, address) VALUES ('boot', 'address') RETURNING incarnation"
        )
        return incarnation
    finally:
        await connection.close()


@asynccontextmanager
async def fenced_writer(dsn: str, *, first: str = "") -> AsyncIterator[FencedWriter]:
    """Open the writer of a new incarnation. `first` is the DSN of its first connection, if another."""
    incarnation = await install(dsn)
    name = f"trunkline {incarnation}"
    connector = Connector(Dsn.parse(dsn), name, WRITER_SETTINGS)
    connection = await Connector(Dsn.parse(first or dsn), name, WRITER_SETTINGS).connect()
    writer = FencedWriter(connection, connector, incarnation)
    try:
        yield writer
    finally:
        await writer.close()


async def note(writer: FencedWriter, text: str) -> Any:
    """Commit a row. Returns its text."""
    return await writer.write(NOTE, NOTED, text)


async def notes(dsn: str) -> list[str]:
    """Read all committed rows, in order."""
    return [row["action"] for row in await query(dsn, "SELECT action FROM audit ORDER BY id")]


async def query(dsn: str, text: str, *args: object) -> list[asyncpg.Record]:
    """Run a query on a connection of its own."""
    connection = await asyncpg.connect(dsn)
    try:
        rows: list[asyncpg.Record] = await connection.fetch(text, *args)
        return rows
    finally:
        await connection.close()


async def until(condition: Callable[[], Any]) -> None:
    """Wait until an awaitable condition holds."""
    async with asyncio.timeout(patient(10)):
        while not await condition():  # noqa: ASYNC110
            await asyncio.sleep(0.005)
