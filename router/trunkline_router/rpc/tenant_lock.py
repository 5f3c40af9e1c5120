"""Serialises a tenant's expensive calls, such as erasures."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from trunkline.v1 import catalogue

#: Calls of one tenant that may wait for the lock.
MAX_WAITING_CALLS = 100


class PerTenantLock:
    """One lock per tenant for calls that block the log's writer: others wait for one of them at most."""

    def __init__(self) -> None:
        self._entries: dict[str, _LockEntry] = {}

    @asynccontextmanager
    async def acquire(self, tenant: str) -> AsyncIterator[None]:
        """Hold the tenant's lock. Raises Refused OVERLOADED if too many calls wait for it."""
        entry = self._entries.setdefault(tenant, _LockEntry())
        if entry.calls > MAX_WAITING_CALLS:
            problem = f"{MAX_WAITING_CALLS} calls of tenant {tenant} are already waiting"
            raise catalogue.OVERLOADED.refused(problem=problem)
        entry.calls += 1
        try:
            async with entry.lock:
                yield
        finally:
            entry.calls -= 1
            if not entry.calls:
                del self._entries[tenant]


class _LockEntry:
    """One tenant's lock, kept while any call holds it or waits for it."""

    def __init__(self) -> None:
        self.lock = asyncio.Lock()
        self.calls = 0
