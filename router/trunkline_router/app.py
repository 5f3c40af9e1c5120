"""A router process: what it is made of, how it starts, and how it stops."""

from __future__ import annotations

import asyncio
import secrets
import time

import grpc.aio
import structlog
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1._async import HealthServicer
from grpc_reflection.v1alpha import reflection
from trunkline.v1 import (
    agent_service_pb2,
    agent_service_pb2_grpc,
    broadcast_service_pb2,
    broadcast_service_pb2_grpc,
    edge_service_pb2,
    edge_service_pb2_grpc,
    history_service_pb2,
    history_service_pb2_grpc,
    presence_service_pb2,
    presence_service_pb2_grpc,
    tenant_service_pb2,
    tenant_service_pb2_grpc,
)
from trunkline_runtime import process
from trunkline_runtime.process import StartError

from trunkline_router import listeners
from trunkline_router.core.router import RouterCore
from trunkline_router.core.tenants.tenant import defaults
from trunkline_router.log.interface import Log
from trunkline_router.log.sqlite.engine import SqliteLog
from trunkline_router.maintenance import Maintenance
from trunkline_router.operator_key import operator_key
from trunkline_router.rpc.agent_service import AgentServicer
from trunkline_router.rpc.auth_interceptor import AuthInterceptor
from trunkline_router.rpc.broadcast_service import BroadcastServicer
from trunkline_router.rpc.edge_service import EdgeServicer
from trunkline_router.rpc.history_service import HistoryServicer
from trunkline_router.rpc.presence_service import PresenceServicer
from trunkline_router.rpc.tenant_service import TenantServicer
from trunkline_router.runtime import RouterRuntime
from trunkline_router.settings import RouterSettings
from trunkline_router.tenant_admin import TenantAdmin
from trunkline_router.tenant_reconciler import TenantReconciler

_log = structlog.get_logger()

SERVICES = [
    module.DESCRIPTOR.services_by_name[name].full_name
    for module, name in (
        (edge_service_pb2, "EdgeService"),
        (agent_service_pb2, "AgentService"),
        (broadcast_service_pb2, "BroadcastService"),
        (history_service_pb2, "HistoryService"),
        (presence_service_pb2, "PresenceService"),
        (tenant_service_pb2, "TenantService"),
    )
]

GRPC_OPTIONS = [
    ("grpc.max_receive_message_length", 16 << 20),
    ("grpc.max_send_message_length", 16 << 20),
    # Two routers on one port would each get half of the calls.
    ("grpc.so_reuseport", 0),
    # A caller that keeps an idle stream alive is none that floods us.
    ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
    # Instead of gRPC's two minutes.
    ("grpc.server_handshake_timeout_ms", 10_000),
]


async def serve(settings: RouterSettings, stop: asyncio.Event) -> None:
    """Run a router until the event is set. Raises StartError where it cannot start."""
    listeners.check(settings)
    log = await open_log(settings)
    shell = make_shell(settings, log)
    await shell.load()
    registry = TenantAdmin(shell)
    declared = TenantReconciler(settings, registry)
    await declared.apply()
    guard = AuthInterceptor(shell, operator_key(settings), listeners.proof(settings))
    server, health = await make_server(shell, registry, guard)
    listening, links = listeners.bind(server, settings)
    await server.start()
    tasks = asyncio.create_task(_run(shell, Maintenance(shell, registry, declared)))
    _log.info("router is ready", listening=listening, links=links, tenants=len(shell.core.directory.tenants))
    process.say_listening(listening)
    stopping = asyncio.create_task(stop.wait())
    await asyncio.wait({stopping, tasks}, return_when=asyncio.FIRST_COMPLETED)
    await _close(server, health, shell, log, tasks)


async def _run(shell: RouterRuntime, upkeep: Maintenance) -> None:
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(shell.run())
        tasks.create_task(upkeep.run())


async def _close(
    server: grpc.aio.Server, health: HealthServicer, shell: RouterRuntime, log: Log, tasks: asyncio.Task[None]
) -> None:
    """Stop, losing nothing: 1. say so, 2. end the streams, 3. commit what was taken, 4. close the log."""
    _log.info("router is stopping")
    await health.enter_graceful_shutdown()
    shell.end_streams()
    await server.stop(grace=5)
    if tasks.done():
        # A task of the shell failed, which is a fault: say it after the log is safe.
        await log.close()
        tasks.result()
    await shell.flush()
    tasks.cancel()
    await asyncio.gather(tasks, return_exceptions=True)
    await log.close()


async def open_log(settings: RouterSettings) -> Log:
    """The log in the data folder. Raises StartError where it cannot be opened."""
    try:
        settings.data_dir.mkdir(parents=True, exist_ok=True)
        return SqliteLog.open(settings.data_dir / "trunkline.db")
    except Exception as error:
        problem = f"cannot open the log in {settings.data_dir}: {error}"
        raise StartError(f"{problem}. TRUNKLINE_DATA_DIR names another folder.") from error


def make_shell(settings: RouterSettings, log: Log) -> RouterRuntime:
    """The core and its shell."""
    core = RouterCore(
        defaults(conversations=settings.max_conversations, open_messages=settings.max_open_messages),
        window=settings.link_window,
        lease_s=settings.lease_s,
        delivery_lease_s=settings.delivery_lease_s,
        reply_lease_s=settings.reply_lease_s,
        max_attempts=settings.max_attempts,
        max_open_bytes=settings.max_open_bytes,
        checkpoint_bytes=settings.checkpoint_bytes,
        outbox_max_bytes=settings.link_outbox_bytes,
        peek=log.head,
        new_id=lambda: secrets.token_hex(12),
        now_ms=lambda: time.time_ns() // 1_000_000,
    )
    return RouterRuntime(core, log, settings.checkpoint_interval_s)


async def make_server(
    shell: RouterRuntime, registry: TenantAdmin, guard: AuthInterceptor
) -> tuple[grpc.aio.Server, HealthServicer]:
    """The gRPC server with all services."""
    router_id = secrets.token_hex(8)
    server = grpc.aio.server(interceptors=[guard], options=GRPC_OPTIONS)
    edge_service_pb2_grpc.add_EdgeServiceServicer_to_server(EdgeServicer(shell, router_id), server)
    agent_service_pb2_grpc.add_AgentServiceServicer_to_server(AgentServicer(shell, router_id), server)
    broadcast_service_pb2_grpc.add_BroadcastServiceServicer_to_server(BroadcastServicer(shell), server)
    history_service_pb2_grpc.add_HistoryServiceServicer_to_server(HistoryServicer(shell), server)
    presence_service_pb2_grpc.add_PresenceServiceServicer_to_server(PresenceServicer(shell), server)
    tenant_service_pb2_grpc.add_TenantServiceServicer_to_server(TenantServicer(registry), server)
    health = HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(health, server)
    for name in ("", *SERVICES):
        await health.set(name, health_pb2.HealthCheckResponse.SERVING)
    reflection.enable_server_reflection([*SERVICES, reflection.SERVICE_NAME], server)
    return server, health


def run(settings: RouterSettings) -> int:
    """Run a router in this process; returns its exit code."""
    return process.run("router", lambda stop: serve(settings, stop))
