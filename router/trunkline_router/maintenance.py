"""Background work of a router: expiry of keys, deliveries and uploads, retention, interrupted deletions.

One task for the process. Every piece of work is short, and commits run between the pieces.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator

from trunkline.v1.tenant_pb2 import TENANT_STATE_DELETING
from trunkline_runtime.descriptors import watch

from trunkline_router.audit_trail import AuditTrail
from trunkline_router.core.tenants.revocations import RETENTION_MS
from trunkline_router.core.tenants.tenant import Tenant
from trunkline_router.core.values.log_records import Cursor, HistoryLimits
from trunkline_router.core.values.stored_records import Registration
from trunkline_router.log.data_key_settings import DataKeyFile
from trunkline_router.log.interface import LogUnavailable
from trunkline_router.runtime import RouterRuntime
from trunkline_router.tenant_admin import TenantAdmin
from trunkline_router.tenant_reconciler import TenantReconciler

#: Interval between rounds.
ROUND_S = 1.0
#: Pieces of history pruned per round.
PRUNED_PIECES_PER_ROUND = 8
#: Deliveries read per piece in search of expired ones, and pieces per round.
EXPIRY_PIECE = 2000
EXPIRY_PIECES_PER_ROUND = 8
#: Interval at which expired revocations are deleted.
REVOCATION_EXPIRY_S = 3600.0


class Maintenance:
    """The background work of one router. `run` returns only when cancelled."""

    def __init__(
        self,
        runtime: RouterRuntime,
        admin: TenantAdmin,
        reconciler: TenantReconciler,
        keys: DataKeyFile,
        audit: AuditTrail,
    ) -> None:
        self._runtime = runtime
        self._audit = audit
        self._admin = admin
        self._reconciler = reconciler
        self._data_key_file = keys
        self._to_prune: Iterator[Tenant] = iter(())
        self._pruning: Tenant | None = None
        self._cursor: Cursor | None = None
        self._revocation_expiry_at = 0.0
        self._expiry_after = 0

    async def run(self) -> None:
        """Run a round every second; a failing log ends a round, not the task."""
        while True:
            await asyncio.sleep(ROUND_S)
            watch.check()
            try:
                await self._run_round()
            except LogUnavailable as error:
                self._runtime.report_log(error)

    async def _run_round(self) -> None:
        runtime, now_ms = self._runtime, time.time_ns() // 1_000_000
        await runtime.write(lambda: runtime.log.sweep(now_ms))
        if used := runtime.core.api_keys.take_last_used():
            try:
                await runtime.log.register(Registration(keys_used=used))
            except LogUnavailable:
                runtime.core.api_keys.restore_last_used(used)
                raise
        await self._data_key_file.refresh()
        await self._audit.write_refusals()
        await self._reconciler.refresh()
        await self._finish_deletions()
        await runtime.media.sweep(time.time())
        await self._expire_deliveries()
        for _ in range(PRUNED_PIECES_PER_ROUND):
            if not await self._prune(now_ms):
                break
        if time.monotonic() >= self._revocation_expiry_at:
            self._revocation_expiry_at = time.monotonic() + REVOCATION_EXPIRY_S
            await self._expire_revocations(now_ms - RETENTION_MS)
            await self._audit.expire()

    async def _expire_deliveries(self) -> None:
        """Remove deliveries that expired; continues after a round's last piece in the next round."""
        runtime = self._runtime
        for _ in range(EXPIRY_PIECES_PER_ROUND):
            page = await runtime.log.expired(self._expiry_after, EXPIRY_PIECE)
            self._expiry_after = page.after
            if page.expired:
                with runtime.step() as core:
                    core.dispatcher.expired(page.expired)
            if not page.after:
                return

    async def _finish_deletions(self) -> None:
        """Continue tenant deletions that a crash or a full disk interrupted."""
        tenants = self._runtime.core.directory.tenants
        for name in [t.name for t in tenants.values() if t.state == TENANT_STATE_DELETING]:
            await self._admin.finish_deletion(name)

    async def _prune(self, now_ms: int) -> bool:
        """Prune a piece of one tenant's histories. Returns False once all tenants had their turn."""
        runtime = self._runtime
        if self._pruning is None or self._pruning.name not in runtime.core.directory.tenants:
            self._cursor = None
            self._pruning = next(self._to_prune, None)
            if self._pruning is None:
                self._to_prune = self._tenants_with_retention()
                return False
        tenant, cursor = self._pruning, self._cursor
        piece = await runtime.write(lambda: runtime.log.prune(tenant.name, tenant.retention, cursor, now_ms))
        tenant.messages_erased += piece.messages
        self._cursor = piece.cursor
        if piece.cursor is None:
            self._pruning = None
        return True

    def _tenants_with_retention(self) -> Iterator[Tenant]:
        """Active tenants that limit their history."""
        tenants = list(self._runtime.core.directory.tenants.values())
        return (t for t in tenants if t.is_active and t.retention != HistoryLimits())

    async def _expire_revocations(self, revoked_before_ms: int) -> None:
        await self._runtime.log.register(Registration(revoked_before_ms=revoked_before_ms))
        for tenant in self._runtime.core.directory.tenants.values():
            tenant.revocations.prune(revoked_before_ms)
