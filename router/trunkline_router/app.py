"""Assembles a router process; starts and stops it in order."""

from __future__ import annotations

import asyncio
import random
import secrets
import time
from collections.abc import Sequence

import grpc.aio
import structlog
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1._async import HealthServicer
from trunkline.v1 import (
    agent_service_pb2,
    agent_service_pb2_grpc,
    audit_service_pb2,
    audit_service_pb2_grpc,
    broadcast_service_pb2,
    broadcast_service_pb2_grpc,
    edge_service_pb2,
    edge_service_pb2_grpc,
    history_service_pb2,
    history_service_pb2_grpc,
    media_service_pb2,
    media_service_pb2_grpc,
    presence_service_pb2,
    presence_service_pb2_grpc,
    tenant_service_pb2,
    tenant_service_pb2_grpc,
)
from trunkline.v1.tenant_limits import default_limits
from trunkline_runtime import process
from trunkline_runtime.descriptors import watch
from trunkline_runtime.process import StartError

from trunkline_router import listeners
from trunkline_router.audit_trail import AuditTrail
from trunkline_router.core.router import RouterCore
from trunkline_router.grpc_options import server_options
from trunkline_router.log.data_key_settings import DataKeyFile
from trunkline_router.log.engines import open_database
from trunkline_router.log.interface import Log
from trunkline_router.maintenance import Maintenance
from trunkline_router.media.folder import MediaFolder
from trunkline_router.operator_key import operator_key
from trunkline_router.rpc.agent_service import AgentServicer
from trunkline_router.rpc.audit_service import AuditServicer
from trunkline_router.rpc.auth_interceptor import AuthInterceptor
from trunkline_router.rpc.broadcast_service import BroadcastServicer
from trunkline_router.rpc.edge_service import EdgeServicer
from trunkline_router.rpc.history_service import HistoryServicer
from trunkline_router.rpc.media_service import MediaServicer
from trunkline_router.rpc.presence_service import PresenceServicer
from trunkline_router.rpc.reflection import add_reflection
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
        (audit_service_pb2, "AuditService"),
        (broadcast_service_pb2, "BroadcastService"),
        (history_service_pb2, "HistoryService"),
        (media_service_pb2, "MediaService"),
        (presence_service_pb2, "PresenceService"),
        (tenant_service_pb2, "TenantService"),
    )
]

#: Described by reflection, besides the services above.
HEALTH = "grpc.health.v1.Health"


async def serve(settings: RouterSettings, stop: asyncio.Event) -> None:
    """Run a router until the event is set. Raises StartError if it cannot start."""
    listeners.check(settings)
    ports = 2 if settings.link_listen else 1
    max_connections = watch.raise_limit(settings.max_connections * ports, "TRUNKLINE_MAX_CONNECTIONS")
    log = (await open_database(settings).acquire(lambda: None)).log
    runtime = make_runtime(settings, log)
    await runtime.load()
    audit = AuditTrail(log)
    admin = TenantAdmin(runtime, audit)
    reconciler = TenantReconciler(settings, admin)
    await reconciler.apply()
    interceptor = AuthInterceptor(runtime, operator_key(settings), listeners.link_verifier(settings), audit)
    options = server_options(max_connections // ports, settings.connection_idle_s)
    server, health = await make_server(runtime, admin, interceptor, options)
    listening, links = listeners.bind(server, settings)
    await server.start()
    data_key_file = DataKeyFile(settings.data_key_file, log)
    tasks = asyncio.create_task(_run(runtime, Maintenance(runtime, admin, reconciler, data_key_file, audit)))
    tenants = len(runtime.core.directory.tenants)
    _log.info("router is ready", listening=listening, links=links, tenants=tenants)
    process.announce_listening(listening)
    stopping = asyncio.create_task(stop.wait())
    await asyncio.wait({stopping, tasks}, return_when=asyncio.FIRST_COMPLETED)
    await _close(server, health, runtime, log, tasks)


async def _run(runtime: RouterRuntime, maintenance: Maintenance) -> None:
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(runtime.run())
        tasks.create_task(maintenance.run())


async def _close(
    server: grpc.aio.Server,
    health: HealthServicer,
    runtime: RouterRuntime,
    log: Log,
    tasks: asyncio.Task[None],
) -> None:
    """Stop without loss: 1. report NOT_SERVING, 2. end streams, 3. commit the queue, 4. close the log."""
    _log.info("router is stopping")
    await health.enter_graceful_shutdown()
    runtime.end_streams()
    await server.stop(grace=5)
    if tasks.done():
        # A task failed, which is a bug: raise it once the log is safe.
        await log.close()
        tasks.result()
    await runtime.flush()
    tasks.cancel()
    await asyncio.gather(tasks, return_exceptions=True)
    await runtime.finish_writes()
    runtime.media.close()
    await log.close()


def make_runtime(settings: RouterSettings, log: Log) -> RouterRuntime:
    """Build the core and its runtime."""
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
        peek=log.head,
        new_id=lambda: secrets.token_hex(12),
        now_ms=lambda: time.time_ns() // 1_000_000,
        random=random.random,
    )
    return RouterRuntime(core, log, _open_media(settings), settings.checkpoint_interval_s)


def _open_media(settings: RouterSettings) -> MediaFolder:
    """Open the folder of uploads. Raises StartError."""
    folder = settings.data_dir / "media"
    try:
        return MediaFolder.open(folder, settings.upload_ttl_s)
    except OSError as error:
        raise StartError(f"cannot open the folder of uploads, {folder}: {error}") from error


async def make_server(
    runtime: RouterRuntime,
    admin: TenantAdmin,
    interceptor: AuthInterceptor,
    options: Sequence[tuple[str, int]],
) -> tuple[grpc.aio.Server, HealthServicer]:
    """Build the gRPC server with all services; it listens nowhere yet."""
    router_id = secrets.token_hex(8)
    server = grpc.aio.server(interceptors=[interceptor], options=options)
    edge_service_pb2_grpc.add_EdgeServiceServicer_to_server(EdgeServicer(runtime, router_id), server)
    agent_service_pb2_grpc.add_AgentServiceServicer_to_server(
        AgentServicer(runtime, router_id, interceptor.audit), server
    )
    broadcast_service_pb2_grpc.add_BroadcastServiceServicer_to_server(BroadcastServicer(runtime), server)
    history_service_pb2_grpc.add_HistoryServiceServicer_to_server(
        HistoryServicer(runtime, interceptor.audit), server
    )
    media_service_pb2_grpc.add_MediaServiceServicer_to_server(MediaServicer(runtime, runtime.media), server)
    presence_service_pb2_grpc.add_PresenceServiceServicer_to_server(
        PresenceServicer(runtime, interceptor.audit), server
    )
    tenant_service_pb2_grpc.add_TenantServiceServicer_to_server(TenantServicer(admin), server)
    audit_service_pb2_grpc.add_AuditServiceServicer_to_server(AuditServicer(runtime), server)
    health = HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(health, server)
    for name in ("", *SERVICES):
        await health.set(name, health_pb2.HealthCheckResponse.SERVING)
    add_reflection((*SERVICES, HEALTH), server)
    return server, health


def run(settings: RouterSettings) -> int:
    """Run a router in this process and return its exit code."""
    return process.run("router", lambda stop: serve(settings, stop))
