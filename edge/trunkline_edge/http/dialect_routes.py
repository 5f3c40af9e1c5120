"""Serves the HTTP routes of dialects, and makes the RPCs that their handlers yield."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
from google.protobuf.descriptor import MethodDescriptor
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Match, Route
from starlette.types import Scope
from trunkline.v1.access_pb2 import SCOPE_BROADCAST
from trunkline.v1.catalogue import Refused
from trunkline_runtime.refusals import to_status

from trunkline_edge.dialects.dialect import (
    CallRefused,
    Dialect,
    DialectRoute,
    HttpReply,
    HttpRequest,
    RouterCall,
    RouteSteps,
    read_query,
)
from trunkline_edge.dialects.registry import DialectRegistry
from trunkline_edge.dialects.tenant_policies import TenantPolicies
from trunkline_edge.http.bindings import services, tenant_path
from trunkline_edge.http.body_reader import BodyReader
from trunkline_edge.http.caller_metadata import CallerMetadata, is_local
from trunkline_edge.http.error_responses import respond
from trunkline_edge.http.router_client import CallFailed, RouterClient
from trunkline_edge.http_errors import http_status


class DialectRoutes:
    """The routes of all dialects."""

    def __init__(
        self,
        registry: DialectRegistry,
        tenants: TenantPolicies,
        router: RouterClient,
        caller_metadata: CallerMetadata,
    ) -> None:
        self._dialects = registry.dialects
        self._tenants = tenants
        self._router = router
        self._caller_metadata = caller_metadata
        self._bodies = BodyReader()
        self._methods = {f"{s.name}.{method.name}": method for s in services() for method in s.methods}

    def routes(self) -> list[BaseRoute]:
        """Routes for Starlette."""
        return [self._route(dialect, route) for dialect in self._dialects for route in dialect.routes]

    def _route(self, dialect: Dialect, route: DialectRoute) -> BaseRoute:
        async def endpoint(request: Request) -> Response:
            return await respond(request, self._serve(request, dialect, route))

        return _RawPathRoute(route, endpoint)

    async def _serve(self, request: Request, dialect: Dialect, route: DialectRoute) -> Response:
        query = read_query(request.url.query)
        try:
            if route.method != "GET":
                self._admit(request, dialect)
        except Refused as reason:
            if route.render_refusal is None:
                raise
            reply = route.render_refusal(_call_refused(reason))
        else:
            async with self._bodies.of_any_type(request) as body:
                headers, local = dict(request.headers), is_local(request)
                asked = HttpRequest(request.path_params, query, headers, body, self._tenants, local)
            # The RPCs may take long, so the body no longer counts against the bound of all requests.
            reply = await self._drive(route.handle(asked), request)
        return Response(msgspec.json.encode(reply.body), reply.status, media_type="application/json")

    def _admit(self, request: Request, dialect: Dialect) -> None:
        """Raises Refused if the path identifies the tenant and the router would reject the caller."""
        parameters = request.path_params
        reserved = parameters.get(dialect.reserved_parameter, "")
        tenant = parameters.get("tenant") or self._tenants.owner_of(dialect.name, reserved)
        if tenant:
            self._caller_metadata.admit(request, tenant, SCOPE_BROADCAST)

    async def _drive(self, steps: RouteSteps, request: Request) -> HttpReply:
        """Make the RPCs that a handler yields, one after another.

        Raises CallFailed or Refused for a failed RPC if the handler does not handle it.
        """
        try:
            call = next(steps)
            while True:
                try:
                    response = await self._call(call, request)
                except (CallFailed, Refused) as reason:
                    try:
                        call = steps.throw(_call_refused(reason))
                    except CallRefused:
                        raise reason from None
                else:
                    call = steps.send(response)
        except StopIteration as stop:
            reply: HttpReply = stop.value
            return reply

    async def _call(self, call: RouterCall, request: Request) -> Any:
        method = self._methods[call.rpc]
        # The dialect decides what its clients may do, so every RPC takes the same scope.
        metadata = self._caller_metadata.metadata(request, _tenant_of(call, method), SCOPE_BROADCAST)
        return await self._router.unary(method, call.request, metadata=metadata)


class _RawPathRoute(Route):
    """Matches the path before it is decoded, like those of WebSockets; see Path."""

    def __init__(self, route: DialectRoute, endpoint: Callable[[Request], Awaitable[Response]]) -> None:
        super().__init__(route.path.text, endpoint, methods=[route.method])
        self._template = route.path

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        """See BaseRoute."""
        is_http = scope["type"] == "http"
        parameters = self._template.match(scope["raw_path"].decode("latin-1")) if is_http else None
        if parameters is None:
            return Match.NONE, {}
        fits = Match.FULL if scope["method"] in (self.methods or ()) else Match.PARTIAL
        return fits, {"endpoint": self.endpoint, "path_params": parameters}


def _call_refused(reason: CallFailed | Refused) -> CallRefused:
    status = to_status(reason) if isinstance(reason, Refused) else reason.status
    code = reason.entry.code if isinstance(reason, Refused) else reason.reason
    return CallRefused(code, status.message, http_status(status))


def _tenant_of(call: RouterCall, method: MethodDescriptor) -> str:
    value: Any = call.request
    for field in tenant_path(method):
        value = getattr(value, field.name)
    return str(value)
