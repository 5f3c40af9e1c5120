"""Serves the HTTP routes of dialects: makes the calls that they ask for."""

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

from trunkline_edge.dialects.dialect import (
    CallRefused,
    Handling,
    HttpReply,
    HttpRequest,
    RouterCall,
    read_query,
)
from trunkline_edge.dialects.dialect import Route as DialectRoute
from trunkline_edge.dialects.registry import DialectRegistry
from trunkline_edge.dialects.tenant_policies import TenantPolicies
from trunkline_edge.http.bindings import services, tenant_path
from trunkline_edge.http.body_reader import BodyReader
from trunkline_edge.http.caller_metadata import CallerMetadata, is_local
from trunkline_edge.http.error_responses import answered, http_status
from trunkline_edge.http.router_client import CallFailed, RouterClient


class DialectRoutes:
    """The routes of all dialects."""

    def __init__(
        self, registry: DialectRegistry, tenants: TenantPolicies, calls: RouterClient, access: CallerMetadata
    ) -> None:
        self._dialects = registry.dialects
        self._tenants = tenants
        self._calls = calls
        self._access = access
        self._bodies = BodyReader()
        self._methods = {f"{s.name}.{method.name}": method for s in services() for method in s.methods}

    def routes(self) -> list[BaseRoute]:
        """All of them."""
        return [self._served(route) for dialect in self._dialects for route in dialect.routes]

    def _served(self, route: DialectRoute) -> BaseRoute:
        async def endpoint(request: Request) -> Response:
            return await answered(request, self._serve(request, route))

        return _AsItCame(route, endpoint)

    async def _serve(self, request: Request, route: DialectRoute) -> Response:
        query = read_query(request.url.query)
        try:
            if route.method != "GET":
                self._admit(request)
        except CallFailed as failure:
            if route.refused is None:
                raise
            reply = route.refused(_as_refused(failure))
        else:
            async with self._bodies.of_any_type(request) as body:
                headers, local = dict(request.headers), is_local(request)
                asked = HttpRequest(request.path_params, query, headers, body, self._tenants, local)
            # What it asks of the router may take long: the body is then no longer others' concern.
            reply = await self._drive(route.handle(asked), request)
        return Response(msgspec.json.encode(reply.body), reply.status, media_type="application/json")

    def _admit(self, request: Request) -> None:
        """Raises CallFailed where the path says whose it is, and the router would refuse it in any case."""
        named = request.path_params
        tenant = named.get("tenant") or self._tenants.of_pipeline(named.get("pipeline", ""))
        if tenant:
            self._access.admit(request, tenant, SCOPE_BROADCAST)

    async def _drive(self, handling: Handling, request: Request) -> HttpReply:
        """Make the calls that the handling yields, one after another.

        Raises CallFailed for one that was refused where the handling leaves it at that.
        """
        try:
            call = next(handling)
            while True:
                try:
                    response = await self._call(call, request)
                except CallFailed as failure:
                    try:
                        call = handling.throw(_as_refused(failure))
                    except CallRefused:
                        raise failure from None
                else:
                    call = handling.send(response)
        except StopIteration as stop:
            reply: HttpReply = stop.value
            return reply

    async def _call(self, call: RouterCall, request: Request) -> Any:
        method = self._methods[call.rpc]
        # What its own clients may do is for a dialect to say.
        metadata = self._access.metadata(request, _tenant_of(call, method), SCOPE_BROADCAST)
        return await self._calls.unary(method, call.request, metadata=metadata)


class _AsItCame(Route):
    """Takes parameters out of the path as it came, like those of a WebSocket's; see Path."""

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


def _as_refused(failure: CallFailed) -> CallRefused:
    return CallRefused(failure.reason, failure.message, http_status(failure))


def _tenant_of(call: RouterCall, method: MethodDescriptor) -> str:
    value: Any = call.request
    for field in tenant_path(method):
        value = getattr(value, field.name)
    return str(value)
