"""Assembles a router process; starts and stops it in order."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Sequence
from typing import Any

import grpc.aio
import structlog
from grpc_health.v1 import health_pb2_grpc
from trunkline_runtime import process
from trunkline_runtime.descriptors import watch

from trunkline_router import listeners
from trunkline_router.grpc_options import server_options
from trunkline_router.log.engines import open_database
from trunkline_router.log.interface import LogDamaged, LogUnavailable
from trunkline_router.log.ownership import OwnedLog
from trunkline_router.operator_key import operator_key
from trunkline_router.rpc.health import RouterHealth
from trunkline_router.rpc.reflection import add_reflection
from trunkline_router.rpc.services import SERVICES, ServiceSwitch
from trunkline_router.runtime import RouterRuntime
from trunkline_router.settings import RouterSettings
from trunkline_router.tenants_file import TenantsFile
from trunkline_router.term import GRACE_S, CallerProofs, Term

_log = structlog.get_logger()

#: Described by reflection, besides the services.
HEALTH = "grpc.health.v1.Health"

#: Interval at which a router that owns the log but cannot load it tries again.
RETRY_S = 1.0


async def serve(settings: RouterSettings, stop: asyncio.Event) -> None:
    """Run a router until the event is set. Raises StartError if it cannot start."""
    listeners.check(settings)
    ports = 2 if settings.link_listen else 1
    max_connections = watch.raise_limit(settings.max_connections * ports, "TRUNKLINE_MAX_CONNECTIONS")
    router = Router(settings, server_options(max_connections // ports, settings.connection_idle_s))
    await router.run(stop)


class Router:
    """A router process: listens, and serves one term after another."""

    def __init__(self, settings: RouterSettings, options: Sequence[tuple[str, int]]) -> None:
        """Nothing listens and nothing is opened yet. Raises StartError."""
        self._settings = settings
        if settings.tenants_file:
            # A standby must not find out in a takeover.
            TenantsFile(settings.tenants_file).load()
        self._database = open_database(settings)
        self._proofs = CallerProofs(operator_key(settings), listeners.link_verifier(settings))
        self._term: Term | None = None
        self._switch = ServiceSwitch()
        self._server, self._health = make_server(self._switch, options)
        #: Addresses; the second, for links with certificates, may be empty. Both are until `_listen`.
        self._listening = self._links = ""

    async def run(self, stop: asyncio.Event) -> None:
        """Serve until the event is set. Raises StartError."""
        stopping = asyncio.create_task(stop.wait())
        try:
            while (owned := await self._acquire(stopping)) is not None:
                await self._unless_stopped(self._begin(owned), stopping)
                if self._term is not None:
                    await self._serve(self._term, stopping)
                if stopping.done():
                    break
        finally:
            stopping.cancel()
            await self._stop()

    async def _acquire(self, stopping: asyncio.Task[bool]) -> OwnedLog | None:
        """Wait until this router owns the log, as a standby if need be. Returns None if the router stops."""
        must_wait = asyncio.Event()
        waiting = asyncio.create_task(must_wait.wait())
        acquiring = asyncio.create_task(self._database.acquire(must_wait.set))
        awaited: set[asyncio.Task[object]] = {stopping, acquiring}
        try:
            await asyncio.wait(awaited | {waiting}, return_when=asyncio.FIRST_COMPLETED)
            if not (acquiring.done() or stopping.done()):
                if not self._listening:
                    await self._listen()
                    process.announce_listening(self._listening)
                await asyncio.wait(awaited, return_when=asyncio.FIRST_COMPLETED)
            if stopping.done() and not acquiring.done():
                return None
            return acquiring.result()
        finally:
            waiting.cancel()
            if not acquiring.done():
                acquiring.cancel()
            await asyncio.gather(acquiring, return_exceptions=True)

    async def _unless_stopped(
        self, beginning: Coroutine[Any, Any, None], stopping: asyncio.Task[bool]
    ) -> None:
        """Begin a term; cancelled when the router stops: the log may take no writes for long."""
        task = asyncio.create_task(beginning)
        try:
            await asyncio.wait({task, stopping}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        if not task.cancelled():
            task.result()

    async def _begin(self, owned: OwnedLog) -> None:
        """Begin a term, unless the log cannot be loaded. Raises StartError."""
        try:
            is_takeover = bool(self._listening)
            self._term = await Term.begin(self._settings, owned, self._proofs, is_takeover=is_takeover)
        except LogDamaged:
            raise
        except LogUnavailable as error:
            _log.error("cannot load the log; trying again", reason=str(error))
            await asyncio.sleep(RETRY_S)
            return
        runtime = self._term.runtime
        self._switch.services = self._term.services
        await self._health.follow(lambda: not runtime.is_suspended())
        if not is_takeover:
            await self._listen()
        tenants = len(runtime.core.directory.tenants)
        _log.info("router is ready", listening=self._listening, links=self._links, tenants=tenants)
        if not is_takeover:
            process.announce_listening(self._listening)

    async def _serve(self, term: Term, stopping: asyncio.Task[bool]) -> None:
        """Serve until the router stops or another one owns the log. Raises what a task of the term raised."""
        over = asyncio.create_task(term.wait())
        readiness = asyncio.create_task(self._follow_readiness(term.runtime))
        await asyncio.wait({over, stopping}, return_when=asyncio.FIRST_COMPLETED)
        readiness.cancel()
        if stopping.done():
            over.cancel()
            return
        self._switch.services = self._term = None
        await self._health.follow(lambda: False)
        await term.leave()
        await term.close(flush=False)
        over.result()

    async def _follow_readiness(self, runtime: RouterRuntime) -> None:
        while True:
            await runtime.suspension_changed.wait()
            runtime.suspension_changed.clear()
            await self._health.follow(lambda: not runtime.is_suspended())

    async def _listen(self) -> None:
        """Begin to listen. Raises StartError."""
        self._listening, self._links = listeners.bind(self._server, self._settings)
        await self._server.start()

    async def _stop(self) -> None:
        """Stop without loss: 1. report NOT_SERVING, 2. end streams, 3. commit the queue, 4. close the log."""
        if self._listening:
            _log.info("router is stopping")
            await self._health.end()
            if self._term is not None:
                self._term.runtime.end_streams()
            await self._server.stop(GRACE_S)
        if self._term is not None:
            await self._term.close(flush=True)
        await self._database.close()


def make_server(
    switch: ServiceSwitch, options: Sequence[tuple[str, int]]
) -> tuple[grpc.aio.Server, RouterHealth]:
    """Build a gRPC server that serves what the switch says, health and reflection; it listens nowhere yet."""
    server = grpc.aio.server(interceptors=[switch], options=options)
    health = RouterHealth()
    health_pb2_grpc.add_HealthServicer_to_server(health, server)
    add_reflection((*SERVICES, HEALTH), server)
    return server, health


def run(settings: RouterSettings) -> int:
    """Run a router in this process and return its exit code."""
    return process.run("router", lambda stop: serve(settings, stop))
