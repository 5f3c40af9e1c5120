"""The services of one runtime, and the switch by which a server serves those of one runtime after another."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any, TypeAlias

import grpc
import grpc.aio
from trunkline.v1 import (
    agent_service_pb2,
    agent_service_pb2_grpc,
    audit_service_pb2,
    audit_service_pb2_grpc,
    broadcast_service_pb2,
    broadcast_service_pb2_grpc,
    catalogue,
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

from trunkline_router.rpc.agent_service import AgentServicer
from trunkline_router.rpc.audit_service import AuditServicer
from trunkline_router.rpc.auth_interceptor import AuthInterceptor
from trunkline_router.rpc.broadcast_service import BroadcastServicer
from trunkline_router.rpc.edge_service import EdgeServicer
from trunkline_router.rpc.history_service import HistoryServicer
from trunkline_router.rpc.media_service import MediaServicer
from trunkline_router.rpc.presence_service import PresenceServicer
from trunkline_router.rpc.status import abort
from trunkline_router.rpc.tenant_service import TenantServicer
from trunkline_router.runtime import RouterRuntime
from trunkline_router.tenant_admin import TenantAdmin

#: All of them; gRPC's own services are not among them.
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

_Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"
_Find: TypeAlias = "Callable[[grpc.HandlerCallDetails], Awaitable[_Handler | None]]"


class Services:
    """The services of one runtime."""

    def __init__(
        self, runtime: RouterRuntime, admin: TenantAdmin, interceptor: AuthInterceptor, router_id: str
    ) -> None:
        self.interceptor = interceptor
        self._handlers: dict[str, _Handler] = {}
        # The generated functions call these two methods of a server.
        server: Any = self
        audit = interceptor.audit
        edge_service_pb2_grpc.add_EdgeServiceServicer_to_server(EdgeServicer(runtime, router_id), server)
        agent_service_pb2_grpc.add_AgentServiceServicer_to_server(
            AgentServicer(runtime, router_id, audit), server
        )
        broadcast_service_pb2_grpc.add_BroadcastServiceServicer_to_server(BroadcastServicer(runtime), server)
        history_service_pb2_grpc.add_HistoryServiceServicer_to_server(HistoryServicer(runtime, audit), server)
        media_service_pb2_grpc.add_MediaServiceServicer_to_server(
            MediaServicer(runtime, runtime.media), server
        )
        presence_service_pb2_grpc.add_PresenceServiceServicer_to_server(
            PresenceServicer(runtime, audit), server
        )
        tenant_service_pb2_grpc.add_TenantServiceServicer_to_server(TenantServicer(admin), server)
        audit_service_pb2_grpc.add_AuditServiceServicer_to_server(AuditServicer(runtime), server)

    def add_generic_rpc_handlers(self, handlers: object) -> None:
        """See grpc.aio.Server: these are given by name, too."""

    def add_registered_method_handlers(self, service: str, handlers: Mapping[str, _Handler]) -> None:
        """Take the handlers of a service; each admits its calls first."""
        for rpc, handler in handlers.items():
            self._handlers[f"/{service}/{rpc}"] = self.interceptor.intercept(handler, service, rpc)

    def find(self, path: str) -> _Handler | None:
        """Return the handler of a call; None if there is no such RPC, to which gRPC answers UNIMPLEMENTED."""
        return self._handlers.get(path)


class ServiceSwitch(grpc.aio.ServerInterceptor):
    """Passes each call to the present services; without any, refuses it with ROUTER_STANDBY."""

    def __init__(self) -> None:
        self.services: Services | None = None

    async def intercept_service(
        self, continuation: _Find, handler_call_details: grpc.HandlerCallDetails
    ) -> _Handler | None:
        """See ServerInterceptor."""
        path = str(handler_call_details.method)
        if path[1:].partition("/")[0] not in SERVICES:
            return await continuation(handler_call_details)
        if self.services is not None:
            return self.services.find(path)
        return _STANDBY


async def _refuse(_: Any, context: grpc.aio.ServicerContext[Any, Any]) -> None:
    await abort(context, catalogue.ROUTER_STANDBY.refused())


#: For calls of every kind: it takes no message, and answers none.
_STANDBY: _Handler = grpc.stream_stream_rpc_method_handler(_refuse)
