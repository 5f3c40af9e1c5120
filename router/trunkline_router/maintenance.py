"""What a router does beside its work: forgets what is over, keeps histories within their limits, finishes
what was begun.

One task for the process. Each piece of it is short, and between the pieces commits go on.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator

from trunkline.v1.tenant_pb2 import TENANT_STATE_DELETING

from trunkline_router.core.tenants.revocations import KEPT_MS
from trunkline_router.core.tenants.tenant import Tenant
from trunkline_router.core.values.log_records import Cursor, ErasedPiece, HistoryLimits, Registration
from trunkline_router.log.interface import LogUnavailable
from trunkline_router.runtime import RouterRuntime
from trunkline_router.tenant_admin import TenantAdmin
from trunkline_router.tenant_reconciler import TenantReconciler

#: How often the log does its housekeeping.
SWEEP_S = 1.0
#: Pieces of histories that are looked at each time.
PIECES_A_SWEEP = 8
#: How often old revocations are looked for.
FORGET_S = 3600.0


class Maintenance:
    """The upkeep of one router. `run` returns only by being cancelled."""

    def __init__(self, shell: RouterRuntime, registry: TenantAdmin, declared: TenantReconciler) -> None:
        self._shell = shell
        self._registry = registry
        self._declared = declared
        self._to_prune: Iterator[Tenant] = iter(())
        self._pruning: Tenant | None = None
        self._cursor: Cursor | None = None
        self._forget_at = 0.0

    async def run(self) -> None:
        """Do it every second."""
        while True:
            await asyncio.sleep(SWEEP_S)
            try:
                await self._sweep()
            except LogUnavailable as error:
                self._shell.report_log(error)

    async def _sweep(self) -> None:
        shell, now_ms = self._shell, time.time_ns() // 1_000_000
        await shell.exclusively(lambda: shell.log.sweep(now_ms))
        if used := shell.core.api_keys.take_used():
            await shell.log.register(Registration(keys_used=used))
        await self._declared.refresh()
        await self._finish_deletions()
        for _ in range(PIECES_A_SWEEP):
            if not await self._prune(now_ms):
                break
        if time.monotonic() >= self._forget_at:
            self._forget_at = time.monotonic() + FORGET_S
            await self._forget(now_ms - KEPT_MS)

    async def _finish_deletions(self) -> None:
        """Tenants whose deletion a crash, or a full disk, has interrupted."""
        tenants = self._shell.core.directory.tenants
        for name in [t.name for t in tenants.values() if t.state == TENANT_STATE_DELETING]:
            await self._registry.finish_deletion(name)

    async def _prune(self, now_ms: int) -> bool:
        """Look at a piece of one tenant's histories. False where all were looked at."""
        if self._pruning is None or self._pruning.name not in self._shell.core.directory.tenants:
            self._cursor = None
            self._pruning = next(self._to_prune, None)
            if self._pruning is None:
                self._to_prune = self._with_limits()
                return False
        tenant, cursor = self._pruning, self._cursor

        async def prune() -> ErasedPiece:
            return await self._shell.log.prune(tenant.name, tenant.history, cursor, now_ms)

        piece: ErasedPiece = await self._shell.exclusively(prune)
        tenant.messages_erased += piece.messages
        self._cursor = piece.cursor
        if piece.cursor is None:
            self._pruning = None
        return True

    def _with_limits(self) -> Iterator[Tenant]:
        """Active tenants whose history has limits."""
        tenants = list(self._shell.core.directory.tenants.values())
        return (t for t in tenants if t.is_active and t.history != HistoryLimits())

    async def _forget(self, revoked_before_ms: int) -> None:
        await self._shell.log.register(Registration(revoked_before_ms=revoked_before_ms))
        for tenant in self._shell.core.directory.tenants.values():
            tenant.revocations.forget(revoked_before_ms)
