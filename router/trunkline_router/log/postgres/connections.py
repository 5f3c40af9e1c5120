"""Connections to the database, and what its errors mean."""

from __future__ import annotations

from typing import Any

import asyncpg


class Connections:
    """A few connections that read."""

    def __init__(self, pool: asyncpg.Pool[Any]) -> None:
        self._pool = pool

    async def fetch(self, text: str, *args: object) -> list[asyncpg.Record]:
        """Run a query. Raises LogUnavailable."""
        rows: list[asyncpg.Record] = await self._pool.fetch(text, *args)
        return rows

    async def close(self) -> None:
        """Close the connections."""
        await self._pool.close()
