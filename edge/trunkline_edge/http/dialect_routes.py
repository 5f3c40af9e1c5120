"""Serves the HTTP routes of dialects, and makes the RPCs that their handlers yield."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, ParamSpec, TypeVar

import msgspec
from google.protobuf.descriptor import MethodDescriptor
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Match, Route
from starlette.types import Scope
from trunkline.v1 import catalogue
from trunkline.v1.access_pb2 import SCOPE_BROADCAST
from trunkline.v1.catalogue import Refused
from trunkline_runtime.refusals import to_status

from trunkline_edge.auth.cors import cors_headers, preflight_headers
from trunkline_edge.dialects.dialect import (
    CallRefused,
    DialectRoute,
    HttpReply,
    HttpRequest,
    RouterCall,
    RouteSteps,
    read_query,
)
from trunkline_edge.dialects.paths import Path
from trunkline_edge.dialects.registry import DialectRegistry
from trunkline_edge.dialects.tenant_policies import TenantPolicies
from trunkline_edge.http.bindings import services, tenant_path
from trunkline_edge.http.body_reader import BodyReader, check_body_type
from trunkline_edge.http.caller_metadata import STRANGERS, CallerMetadata, source_of
from trunkline_edge.http.error_responses import failure_response, respond
from trunkline_edge.http.fair_worker import LARGE_BYTES, FairWorker
from trunkline_edge.http.methods import allowed_methods
from trunkline_edge.http.router_client import CallFailed, RouterClient
from trunkline_edge.http_errors import http_status

P = ParamSpec("P")
T = TypeVar("T")


class DialectRoutes:
    """The routes of all dialects."""

    def __init__(
        self,
        registry: DialectRegistry,
        tenants: TenantPolicies,
        router: RouterClient,
        caller_metadata: CallerMetadata,
        bodies: BodyReader,
        worker: FairWorker,
    ) -> None:
        self._dialects = registry.dialects
        self._tenants = tenants
        self._router = router
        self._caller_metadata = caller_metadata
        self._bodies = bodies
        self._worker = worker
        self._methods = {f"{s.name}.{method.name}": method for s in services() for method in s.methods}

    def routes(self) -> list[BaseRoute]:
        """Routes for Starlette, one for each path."""
        by_path: dict[str, list[DialectRoute]] = {}
        for dialect in self._dialects:
            for route in dialect.routes:
                by_path.setdefault(route.path.text, []).append(route)
        # WebSockets are selected before HTTP, so requests to their paths are of other clients.
        sockets = [path for dialect in self._dialects for path in dialect.websocket_paths]
        return [
            *(self._route(routes) for routes in by_path.values()),
            *(_RawPathRoute(path, _upgrade_required) for path in sockets),
        ]

    def _route(self, routes: list[DialectRoute]) -> BaseRoute:
        by_method = {route.method: route for route in routes}
        allowed = allowed_methods(by_method)

        async def endpoint(request: Request) -> Response:
            source = source_of(request)
            policy = self._tenants.policy(routes[0].tenant_of(request.path_params, self._tenants))
            if request.method == "OPTIONS":
                return Response(status_code=204, headers=preflight_headers(policy, source, allowed))
            route = by_method.get("GET" if request.method == "HEAD" else request.method)
            if route is None:
                reason = catalogue.METHOD_NOT_ALLOWED.refused(path=request.scope["path"], allowed=allowed)
                response = failure_response(reason, {"allow": allowed})
            else:
                response = await respond(request, self._serve(request, route))
            response.headers.update(cors_headers(policy, source))
            return response

        return _RawPathRoute(routes[0].path, endpoint)

    async def _serve(self, request: Request, route: DialectRoute) -> Response:
        query = read_query(request.url.query)
        tenant = route.tenant_of(request.path_params, self._tenants)
        try:
            if route.method != "GET":
                if tenant:
                    self._caller_metadata.admit(request, tenant, SCOPE_BROADCAST, is_dialect=True)
                check_body_type(request)
        except Refused as reason:
            if route.render_refusal is None:
                raise
            reply = route.render_refusal(_call_refused(reason))
            return _response(msgspec.json.encode(reply.body), reply)
        share = self._caller_metadata.share(request, tenant, is_dialect=True)
        # A GET needs no body, and only its RPCs authorize it.
        body_share = STRANGERS if route.method == "GET" else share
        async with self._bodies.of_any_type(request, body_share) as body:
            headers, local = dict(request.headers), source_of(request).is_local
            asked = HttpRequest(request.path_params, query, headers, body, self._tenants, local)
        # The RPCs may take long, so the body no longer counts against the bounds of many bodies.
        steps = _Steps(self._worker, body_share if body else share, route.handle(asked), len(body))
        reply = await self._drive(steps, request)
        return _response(await steps.run(msgspec.json.encode, reply.body), reply)

    async def _drive(self, steps: _Steps, request: Request) -> HttpReply:
        """Make the RPCs that a handler yields, one after another.

        Raises CallFailed or Refused for a failed RPC if the handler does not handle it.
        """
        step = await steps.run(_resume, steps.handler.send, None)
        while not isinstance(step, HttpReply):
            try:
                response = await self._call(step, request)
            except (CallFailed, Refused) as reason:
                try:
                    step = await steps.run(_resume, steps.handler.throw, _call_refused(reason))
                except CallRefused:
                    raise reason from None
            else:
                steps.size += response.ByteSize()
                step = await steps.run(_resume, steps.handler.send, response)
        return step

    async def _call(self, call: RouterCall, request: Request) -> Any:
        method = self._methods[call.rpc]
        # The dialect decides what its clients may do, so every RPC takes the same scope.
        tenant = _tenant_of(call, method)
        metadata = self._caller_metadata.metadata(request, tenant, SCOPE_BROADCAST, is_dialect=True)
        response = await self._router.unary(method, call.request, metadata=metadata)
        self._caller_metadata.accepted(request, tenant, is_dialect=True)
        return response


class _Steps:
    """A handler that runs, off the event loop from when it has more than a little to read or write."""

    def __init__(self, worker: FairWorker, share: str, handler: RouteSteps, size: int) -> None:
        self.handler = handler
        #: Bytes of the body and of the responses so far.
        self.size = size
        self._worker = worker
        self._share = share

    async def run(self, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Call something that takes time in proportion to the size. Raises Refused OVERLOADED, too."""
        if self.size <= LARGE_BYTES:
            return call(*args, **kwargs)
        return await self._worker.run(self._share, call, *args, **kwargs)


def _resume(handler: Callable[[Any], RouterCall], value: Any) -> RouterCall | HttpReply:
    """Run a handler up to its next RPC or its reply; a thread cannot raise StopIteration to a future."""
    try:
        return handler(value)
    except StopIteration as stop:
        reply: HttpReply = stop.value
        return reply


def _response(body: bytes, reply: HttpReply) -> Response:
    return Response(body, reply.status, media_type="application/json")


class _RawPathRoute(Route):
    """Matches the path before it is decoded, like those of WebSockets; see Path. Serves every method."""

    def __init__(self, path: Path, endpoint: Callable[[Request], Awaitable[Response]]) -> None:
        super().__init__(path.text, endpoint)
        self.methods = None
        self._template = path

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        """See BaseRoute."""
        is_http = scope["type"] == "http"
        parameters = self._template.match(scope["raw_path"].decode("latin-1")) if is_http else None
        if parameters is None:
            return Match.NONE, {}
        return Match.FULL, {"endpoint": self.endpoint, "path_params": parameters}


async def _upgrade_required(request: Request) -> Response:
    """Reject a plain request to a path of WebSockets."""
    path = request.scope["path"]
    if request.method in ("GET", "HEAD"):
        return failure_response(catalogue.UPGRADE_REQUIRED.refused(path=path))
    refused = catalogue.METHOD_NOT_ALLOWED.refused(path=path, allowed="GET")
    return failure_response(refused, {"allow": "GET"})


def _call_refused(reason: CallFailed | Refused) -> CallRefused:
    status = to_status(reason) if isinstance(reason, Refused) else reason.status
    code = reason.entry.code if isinstance(reason, Refused) else reason.reason
    return CallRefused(code, status.message, http_status(status))


def _tenant_of(call: RouterCall, method: MethodDescriptor) -> str:
    value: Any = call.request
    for field in tenant_path(method):
        value = getattr(value, field.name)
    return str(value)
