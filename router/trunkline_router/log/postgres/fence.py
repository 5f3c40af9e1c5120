"""Writes to the log, each of which commits only while its router owns the log."""

from __future__ import annotations

import json
from typing import Any

import asyncpg

from trunkline_router.log.interface import Fenced

_FENCE = "SELECT 1 FROM routers WHERE incarnation = $1 AND alive FOR SHARE"


class FencedWriter:
    """Commits statements in the name of one incarnation, one after the other."""

    def __init__(self, connection: asyncpg.Connection[Any], incarnation: int) -> None:
        self._connection = connection
        self._incarnation = incarnation
        self._batch = 0

    async def read(self, text: str, *args: object) -> list[asyncpg.Record]:
        """Run a query on the writer's connection: it sees all commits so far."""
        rows: list[asyncpg.Record] = await self._connection.fetch(text, *args)
        return rows

    async def write(self, parts: str, result: str, *args: object) -> Any:
        """Commit one statement. Returns the value of `result`, decoded from JSON.

        `parts` are common table expressions, without WITH. Each that changes rows selects from `fence`, a
        relation of one row, or of none if another router owns the log. `result` is an expression for a jsonb
        value over the parts, or NULL. Parameters of both begin with $3.

        Raises Fenced, and LogUnavailable if the server refused the statement; nothing was committed then.
        """
        self._batch += 1
        text = f"""
            WITH fence AS MATERIALIZED ({_FENCE}),
            {parts + "," if parts else ""}
            committed AS (
                INSERT INTO commits (incarnation, batch, result) SELECT $1, $2, {result} FROM fence
                RETURNING result
            )
            SELECT count(*), min(result::text) FROM committed
        """
        row = await self._connection.fetchrow(text, self._incarnation, self._batch, *args)
        assert row is not None
        if not row[0]:
            raise Fenced("another router owns the log")
        return None if row[1] is None else json.loads(row[1])

    async def close(self) -> None:
        """Close the connection."""
        await self._connection.close()
