"""The lease of the router that owns the log, by the database's clock."""

from __future__ import annotations

import asyncio


class PostgresLease:
    """Implements Lease."""

    def is_valid(self) -> bool:
        """See Lease."""
        return True

    async def lost(self) -> str:
        """See Lease."""
        await asyncio.Future()
        return ""

    async def release(self) -> None:
        """See Lease."""
