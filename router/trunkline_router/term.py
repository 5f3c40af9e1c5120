"""A term: the time for which this router owns the log, and all that it has in memory meanwhile."""

from __future__ import annotations

import asyncio
import random
import secrets
import time
from contextlib import AsyncExitStack
from typing import NamedTuple

import structlog
from trunkline.v1.tenant_limits import default_limits
from trunkline_runtime.process import StartError

from trunkline_router.audit_trail import AuditTrail
from trunkline_router.core.router import RouterCore
from trunkline_router.log.data_key_settings import DataKeyFile
from trunkline_router.log.ownership import OwnedLog
from trunkline_router.maintenance import Maintenance
from trunkline_router.media.folder import MediaFolder
from trunkline_router.rpc.auth_interceptor import AuthInterceptor
from trunkline_router.rpc.caller_resolver import EdgeVerifier
from trunkline_router.rpc.services import Services
from trunkline_router.runtime import RouterRuntime
from trunkline_router.settings import RouterSettings
from trunkline_router.tenant_admin import TenantAdmin
from trunkline_router.tenant_reconciler import TenantReconciler

_log = structlog.get_logger()

#: Time that calls in progress have to end when the router stops, and when another one owns the log.
GRACE_S, LEAVE_S = 5.0, 1.0
#: Time in which what was accepted must be committed when the router stops.
FLUSH_S = 3.0


class CallerProofs(NamedTuple):
    """By what operators and edges prove who they are."""

    operator_key: str
    edges: EdgeVerifier


class Term:
    """Serves a log until the router stops or another one owns it. The next term knows nothing of it."""

    def __init__(
        self, owned: OwnedLog, runtime: RouterRuntime, services: Services, maintenance: Maintenance
    ) -> None:
        """Use `begin`."""
        self._owned = owned
        self.runtime = runtime
        self.services = services
        self._tasks = asyncio.create_task(_run(runtime, maintenance))

    @classmethod
    async def begin(
        cls, settings: RouterSettings, owned: OwnedLog, proofs: CallerProofs, *, is_takeover: bool
    ) -> Term:
        """Load the log, and declare tenants.

        Raises LogUnavailable, and StartError if a declaration is invalid; the log is closed then. In a
        takeover, which serves others that wait, an invalid declaration is logged and changes nothing.
        """
        async with AsyncExitStack() as undo:
            undo.push_async_callback(owned.lease.release)
            undo.push_async_callback(owned.log.close)
            runtime = make_runtime(settings, owned)
            undo.callback(runtime.media.close)
            audit = AuditTrail(owned.log)
            admin = TenantAdmin(runtime, audit)
            reconciler = TenantReconciler(settings, admin)
            await runtime.load()
            try:
                await reconciler.apply()
            except StartError as error:
                if not is_takeover:
                    raise
                _log.error("declared tenants are invalid; those in the log stay", problem=str(error))
            undo.pop_all()
        interceptor = AuthInterceptor(runtime, proofs.operator_key, proofs.edges, audit)
        services = Services(runtime, admin, interceptor, router_id=secrets.token_hex(8))
        data_key_file = DataKeyFile(settings.data_key_file, owned.log)
        return cls(owned, runtime, services, Maintenance(runtime, admin, reconciler, data_key_file, audit))

    async def wait(self) -> None:
        """Wait until another router owns the log. Raises what a task raised, which is a bug."""
        lost = asyncio.create_task(self._owned.lease.lost())
        try:
            await asyncio.wait({lost, self._tasks}, return_when=asyncio.FIRST_COMPLETED)
            if self._tasks.done():
                self._tasks.result()
            _log.error(
                "another router owns the log; this one is a standby from now on", noticed=lost.result()
            )
        finally:
            lost.cancel()

    async def leave(self) -> None:
        """End all streams and calls, so that their callers go to the router that owns the log."""
        self.runtime.end_streams()
        await self.services.interceptor.end_calls(LEAVE_S)

    async def close(self, *, flush: bool) -> None:
        """Close the log, once nobody calls any more, and let another router own it.

        With `flush`, what was accepted is committed first. If that takes longer than FLUSH_S, it is dropped;
        nobody was answered that it is committed.
        """
        runtime = self.runtime
        if flush and not self._tasks.done():
            try:
                async with asyncio.timeout(FLUSH_S):
                    await runtime.flush()
            except TimeoutError:
                _log.error("the log takes no writes; what it did not take was not acknowledged")
        self._tasks.cancel()
        await asyncio.gather(self._tasks, return_exceptions=True)
        await self._owned.log.close()
        await runtime.finish_writes()
        runtime.media.close()
        await self._owned.lease.release()


async def _run(runtime: RouterRuntime, maintenance: Maintenance) -> None:
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(runtime.run())
        tasks.create_task(maintenance.run())


def make_runtime(settings: RouterSettings, owned: OwnedLog) -> RouterRuntime:
    """Build the core and its runtime. Raises StartError."""
    core = RouterCore(
        default_limits(conversations=settings.max_conversations, open_messages=settings.max_open_messages),
        window=settings.link_window,
        lease_s=settings.lease_s,
        delivery_lease_s=settings.delivery_lease_s,
        reply_lease_s=settings.reply_lease_s,
        max_attempts=settings.max_attempts,
        max_open_bytes=settings.max_open_bytes,
        checkpoint_bytes=settings.checkpoint_bytes,
        outbox_max_bytes=settings.link_outbox_bytes,
        peek=owned.log.head,
        new_id=lambda: secrets.token_hex(12),
        now_ms=lambda: time.time_ns() // 1_000_000,
        random=random.random,
    )
    return RouterRuntime(core, owned, _open_media(settings), settings.checkpoint_interval_s)


def _open_media(settings: RouterSettings) -> MediaFolder:
    """Open the folder of uploads. Raises StartError."""
    folder = settings.data_dir / "media"
    try:
        return MediaFolder.open(folder, settings.upload_ttl_s)
    except OSError as error:
        raise StartError(f"cannot open the folder of uploads, {folder}: {error}") from error
