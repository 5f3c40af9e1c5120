"""A router in this process, with its interceptor, and calls of it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from google.rpc.error_details_pb2 import ErrorInfo
from google.rpc.status_pb2 import Status
from trunkline.v1 import (
    agent_service_pb2,
    audit_service_pb2,
    broadcast_service_pb2,
    catalogue,
    edge_service_pb2,
    history_service_pb2,
    presence_service_pb2,
    tenant_service_pb2,
)
from trunkline.v1.access_pb2 import SCOPE_ADMIN, SCOPE_BROADCAST
from trunkline.v1.agent_service_pb2 import AttachRequest
from trunkline.v1.broadcast_service_pb2 import BroadcastManyRequest
from trunkline.v1.presence_service_pb2 import WatchConnectionsRequest
from trunkline.v1.tenant_pb2 import OPENNESS_ANYBODY, OPENNESS_LOOPBACK, TenantSettings
from trunkline_router.app import make_server
from trunkline_router.audit_trail import AuditTrail
from trunkline_router.grpc_options import server_options
from trunkline_router.log.engines import open_database
from trunkline_router.rpc.auth_interceptor import AuthInterceptor
from trunkline_router.rpc.caller_resolver import EdgeVerifier
from trunkline_router.rpc.services import Services, ServiceSwitch
from trunkline_router.runtime import RouterRuntime
from trunkline_router.settings import RouterSettings
from trunkline_router.tenant_admin import TenantAdmin
from trunkline_router.term import make_runtime

from tests.support.patience import patient

PATIENCE_S = patient(5)
OPERATOR = "the-operator-of-the-tests"
ALL_SCOPES = tuple(range(SCOPE_BROADCAST, SCOPE_ADMIN + 1))

SERVICES: list[ServiceDescriptor] = [
    service
    for module in (
        agent_service_pb2,
        audit_service_pb2,
        broadcast_service_pb2,
        edge_service_pb2,
        history_service_pb2,
        presence_service_pb2,
        tenant_service_pb2,
    )
    for service in module.DESCRIPTOR.services_by_name.values()
]
METHODS: dict[str, MethodDescriptor] = {
    method.name: method for service in SERVICES for method in service.methods
}

#: Code and text that the client of grpc.aio sets itself, in place of the router's status, if the router ends
#: a stream while the client writes to it.
_LOST_STATUS = ("INTERNAL", "Internal error from Core")

Metadata = tuple[tuple[str, str], ...]


class ByMetadata:
    """Recognises edges by a metadata entry."""

    def is_edge(self, context: Any) -> bool:
        return ("link", "yes") in [tuple(pair) for pair in context.invocation_metadata()]

    def edge_names(self, context: Any) -> tuple[str, ...]:
        return ()


EDGE: Metadata = (("link", "yes"),)
#: Metadata of an edge for a client on another machine.
FAR: Metadata = (("trunkline-remote-ip", "192.0.2.1"),)


def bearer(key: str) -> Metadata:
    return (("authorization", f"Bearer {key}"),)


class InProcessRouter:
    """A router with the tenants `open` (to loopback), `all` (open to anybody) and `closed`."""

    def __init__(
        self,
        runtime: RouterRuntime,
        admin: TenantAdmin,
        interceptor: AuthInterceptor,
        address: str,
        channel: grpc.aio.Channel,
    ) -> None:
        self.runtime = runtime
        self.interceptor = interceptor
        self.admin = admin
        self.address = address
        self.channel = channel

    async def key(self, tenant: str, *scopes: int) -> tuple[str, str]:
        """Create an API key. Returns its id and its secret."""
        stored, secret = await self.admin.create_key(tenant, "", scopes or ALL_SCOPES)
        return stored.key_id, secret

    async def begin(self, rpc: str, *requests: Message, metadata: Metadata = ()) -> Any:
        """Begin a call with these requests; a stream stays open for more."""
        method = METHODS[rpc]
        kind = f"{'stream' if method.client_streaming else 'unary'}_"
        kind += "stream" if method.server_streaming else "unary"
        made = getattr(self.channel, kind)(
            f"/{method.containing_service.full_name}/{rpc}",
            request_serializer=GetMessageClass(method.input_type).SerializeToString,
            response_deserializer=GetMessageClass(method.output_type).FromString,
        )
        if not method.client_streaming:
            return made(*requests, metadata=metadata, timeout=PATIENCE_S)
        call = made(metadata=metadata, timeout=PATIENCE_S)
        # A refusal surfaces when the caller reads.
        with suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):
            for request in requests:
                await call.write(request)
        return call

    async def code(self, rpc: str, *requests: Message, metadata: Metadata = ()) -> str:
        """Make a call. Returns its catalogue code, or OK."""
        return (await self.refusal(rpc, *requests, metadata=metadata))[0]

    async def refusal(self, rpc: str, *requests: Message, metadata: Metadata = ()) -> tuple[str, str]:
        """Make a call. Returns its catalogue code, or OK, and its text."""
        while (found := await ended(await self.begin(rpc, *requests, metadata=metadata))) == _LOST_STATUS:
            pass
        return found


async def ended(call: Any) -> tuple[str, str]:
    """Read a call to its end. Returns its catalogue code, or OK, and its text."""
    try:
        async with asyncio.timeout(PATIENCE_S):
            if isinstance(call, grpc.aio.UnaryUnaryCall):
                await call
            else:
                while await call.read() is not grpc.aio.EOF:
                    pass
    except grpc.aio.AioRpcError as error:
        return reason_of(error), str(error.details())
    return "OK", ""


def reason_of(error: grpc.aio.AioRpcError) -> str:
    for name, value in error.trailing_metadata() or ():
        if name == "grpc-status-details-bin" and isinstance(value, bytes):
            info = ErrorInfo()
            for detail in Status.FromString(value).details:
                if detail.Unpack(info):
                    return info.reason
    return error.code().name


def request_for(method: MethodDescriptor, tenant: str) -> Message:
    """Make a request with nothing but its tenant."""
    request: Any = GetMessageClass(method.input_type)()
    if "tenant" in method.input_type.fields_by_name:
        request.tenant = tenant
    elif "address" in method.input_type.fields_by_name:
        request.address.tenant = tenant
    return request  # type: ignore[no-any-return]


def opening(rpc: str, tenant: str) -> Any:
    """The first message of a stream."""
    if rpc == "Attach":
        attach = AttachRequest()
        attach.hello.tenant = tenant
        attach.hello.agents.append("a")
        attach.hello.capacity = 1
        attach.hello.worker_id = "w"
        attach.hello.contract_minor = catalogue.CONTRACT_MINOR
        return attach
    if rpc == "BroadcastMany":
        batch = BroadcastManyRequest()
        item = batch.requests.add(number=1)
        item.request.address.tenant = tenant
        item.request.parts.add().text.text = "hi"
        return batch
    watch = WatchConnectionsRequest()
    watch.address.tenant = tenant
    return watch


@asynccontextmanager
async def in_process_router(
    folder: Path, edge_verifier: EdgeVerifier | None = None
) -> AsyncIterator[InProcessRouter]:
    settings = RouterSettings(data_dir=folder)
    owned = await open_database(settings).acquire(lambda: None)
    log = owned.log
    runtime = make_runtime(settings, owned)
    await runtime.load()
    audit = AuditTrail(log)
    admin = TenantAdmin(runtime, audit)
    for name, openness in (("open", OPENNESS_LOOPBACK), ("all", OPENNESS_ANYBODY), ("closed", None)):
        await admin.create(name, TenantSettings(open_to=openness))
    interceptor = AuthInterceptor(runtime, OPERATOR, edge_verifier or ByMetadata(), audit)
    switch = ServiceSwitch()
    switch.services = Services(runtime, admin, interceptor, "router")
    server, health = make_server(switch, server_options(100, 600))
    await health.follow(lambda: True)
    address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    await server.start()
    running = asyncio.create_task(runtime.run())
    try:
        async with grpc.aio.insecure_channel(address) as channel:
            yield InProcessRouter(runtime, admin, interceptor, address, channel)
    finally:
        runtime.end_streams()
        await server.stop(grace=1)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        await runtime.finish_writes()
        await log.close()
