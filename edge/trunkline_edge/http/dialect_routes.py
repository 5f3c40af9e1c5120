"""Serves the HTTP routes of dialects, and makes the RPCs that their handlers yield."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, ParamSpec, TypeVar

import msgspec
from google.protobuf.descriptor import MethodDescriptor
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Match, Route
from starlette.types import Receive, Scope, Send
from trunkline.v1 import catalogue
from trunkline.v1.access_pb2 import SCOPE_BROADCAST
from trunkline.v1.catalogue import Refused
from trunkline_runtime.refusals import to_status

from trunkline_edge.auth.cors import cors_headers, preflight_headers
from trunkline_edge.dialects.dialect import (
    JSON,
    CallRefused,
    Dialect,
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
from trunkline_edge.http.caller_metadata import CallerMetadata
from trunkline_edge.http.error_responses import RenderFailure, failure_response, respond
from trunkline_edge.http.fair_worker import LARGE_BYTES, FairWorker
from trunkline_edge.http.methods import allowed_methods
from trunkline_edge.http.router_client import CallFailed, RouterClient
from trunkline_edge.http.sources import source_of
from trunkline_edge.http.token_callers import TokenCaller, TokenCallers
from trunkline_edge.http_errors import http_status
from trunkline_edge.transport.body_budget import STRANGERS

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
        token_callers: TokenCallers,
        bodies: BodyReader,
        worker: FairWorker,
    ) -> None:
        self._dialects = registry.dialects
        self._tenants = tenants
        self._router = router
        self._caller_metadata = caller_metadata
        self._token_callers = token_callers
        self._bodies = bodies
        self._worker = worker
        self._methods = {f"{s.name}.{method.name}": method for s in services() for method in s.methods}

    def routes(self) -> list[BaseRoute]:
        """Routes for Starlette, one for each path, and one for each prefix of paths."""
        found: list[BaseRoute] = []
        prefixes: list[PrefixRoute] = []
        for dialect in self._dialects:
            by_path: dict[str, list[DialectRoute]] = {}
            for route in dialect.routes:
                by_path.setdefault(route.path.text, []).append(route)
            found += [self._route(dialect, routes) for routes in by_path.values()]
            # WebSockets are selected before HTTP, so requests to their paths are of other clients.
            render = _renderer(dialect.render_refusal)
            found += [
                RawPathRoute(path, partial(upgrade_required, render)) for path in dialect.websocket_paths
            ]
            prefixes += [
                PrefixRoute(prefix, partial(_no_such_path, render)) for prefix in dialect.http_prefixes
            ]
        return [*found, *sorted(prefixes, key=lambda route: -len(route.prefix))]

    def _route(self, dialect: Dialect, routes: list[DialectRoute]) -> BaseRoute:
        by_method = {route.method: route for route in routes}
        allowed = allowed_methods(by_method)
        render = _renderer(routes[0].render_refusal)

        async def endpoint(request: Request) -> Response:
            source = source_of(request)
            head = HttpRequest(
                request.path_params, (), dict(request.headers), b"", self._tenants, source.is_local
            )
            route = by_method.get("GET" if request.method == "HEAD" else request.method)
            tenant = (route or routes[0]).tenant_of(head)
            policy = self._tenants.policy(tenant)
            if request.method == "OPTIONS":
                return Response(status_code=204, headers=preflight_headers(policy, source, allowed))
            if route is None:
                reason = catalogue.METHOD_NOT_ALLOWED.refused(path=request.scope["path"], allowed=allowed)
                response = render(reason, {"allow": allowed})
            else:
                call = DialectCall(request, head, dialect.name, route, tenant, route.is_visitor(head))
                response = await respond(request, self._serve(call), render)
            response.headers.update(cors_headers(policy, source))
            return response

        return RawPathRoute(routes[0].path, endpoint)

    async def _serve(self, call: DialectCall) -> Response:
        request, route, tenant = call.request, call.route, call.tenant
        query = read_query(request.url.query)
        if call.is_visitor:
            self._caller_metadata.of_visitor(request, tenant, SCOPE_BROADCAST)
        elif route.method != "GET" and tenant:
            self._caller_metadata.admit(request, tenant, SCOPE_BROADCAST, is_dialect=True)
        route.check_head(call.head)
        if route.method != "GET":
            check_body_type(request, route.body_type)
        client, share = None, tenant
        if not call.is_visitor:
            client = call.client = await self._token_callers.identify_in_dialect(request, tenant)
            share = self._caller_metadata.share(request, tenant, client, is_dialect=True)
        # A GET needs no body, and only its RPCs authorize it.
        body_share = STRANGERS if route.method == "GET" else share
        async with self._bodies.of_any_type(request, body_share) as body:
            if client is not None:
                client.take(body, is_json=route.body_type == JSON)
            asked = call.head._replace(query=query, body=body)
        # The RPCs may take long, so the body no longer counts against the bounds of many bodies.
        steps = _Steps(self._worker, body_share if body else share, route.handle(asked), len(body))
        reply = await self._drive(steps, call)
        return await _response(reply, steps.run)

    async def _drive(self, steps: _Steps, made: DialectCall) -> HttpReply:
        """Make the RPCs that a handler yields, one after another.

        Raises CallFailed or Refused for a failed RPC if the handler does not handle it.
        """
        step = await steps.run(_resume, steps.handler.send, None)
        while not isinstance(step, HttpReply):
            try:
                response = await self._call(step, made)
            except (CallFailed, Refused) as reason:
                try:
                    step = await steps.run(_resume, steps.handler.throw, _call_refused(reason))
                except CallRefused:
                    raise reason from None
            else:
                steps.size += response.ByteSize()
                step = await steps.run(_resume, steps.handler.send, response)
        return step

    async def _call(self, call: RouterCall, made: DialectCall) -> Any:
        method, request = self._methods[call.rpc], made.request
        tenant = _tenant_of(call, method)
        if made.is_visitor:
            metadata = self._caller_metadata.of_visitor(request, tenant, SCOPE_BROADCAST)
            return await self._router.unary(method, call.request, metadata=metadata)
        client = made.client if tenant == made.tenant else None
        # The dialect decides what its clients may do, so every RPC takes the same scope.
        metadata = self._caller_metadata.metadata(
            request, tenant, SCOPE_BROADCAST, client, is_dialect=True, dialect=made.dialect
        )
        response = await self._router.unary(method, call.request, metadata=metadata)
        if client is None:
            self._caller_metadata.accepted(request, tenant, is_dialect=True)
        return response


@dataclass
class DialectCall:
    """A request to a route, and its caller."""

    request: Request
    #: Without query and body.
    head: HttpRequest
    #: Name of the dialect.
    dialect: str
    route: DialectRoute
    #: Empty for none.
    tenant: str
    #: See DialectRoute.
    is_visitor: bool
    #: The caller, if a token identifies them.
    client: TokenCaller | None = None


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


async def _response(reply: HttpReply, run: Callable[..., Awaitable[Any]]) -> Response:
    """The response; `run` encodes a large one elsewhere."""
    body = await run(msgspec.json.encode, reply.body) if reply.media_type == JSON else reply.body
    return Response(body, reply.status, dict(reply.headers), reply.media_type)


def _renderer(render: Callable[[CallRefused], HttpReply] | None) -> RenderFailure:
    """Renders failures in a dialect's form, with the headers that belong to them."""
    if render is None:
        return failure_response

    def render_in_dialect(reason: CallFailed | Refused, headers: dict[str, str] | None = None) -> Response:
        reply = render(_call_refused(reason))
        own = dict(failure_response(reason).headers)
        kept = {name: value for name, value in own.items() if not name.startswith("content-")}
        if reply.status != 401:
            kept.pop("www-authenticate", None)
        kept |= dict(reply.headers) | (headers or {})
        body = msgspec.json.encode(reply.body) if reply.media_type == JSON else reply.body
        return Response(body, reply.status, kept, reply.media_type)

    return render_in_dialect


class RawPathRoute(Route):
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


class PrefixRoute(BaseRoute):
    """Matches every HTTP path below a prefix."""

    def __init__(self, prefix: str, endpoint: Callable[[Request], Response]) -> None:
        self.prefix = prefix
        self._endpoint = endpoint

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        """See BaseRoute."""
        ours = scope["type"] == "http" and scope["path"].startswith(self.prefix)
        return (Match.FULL if ours else Match.NONE), {}

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See BaseRoute."""
        await self._endpoint(Request(scope, receive))(scope, receive, send)


def _no_such_path(render: RenderFailure, request: Request) -> Response:
    return render(catalogue.NO_SUCH_PATH.refused(path=request.scope["path"]))


async def upgrade_required(render: RenderFailure, request: Request) -> Response:
    """Reject a plain request to a path of WebSockets."""
    path = request.scope["path"]
    if request.method in ("GET", "HEAD"):
        return render(catalogue.UPGRADE_REQUIRED.refused(path=path))
    refused = catalogue.METHOD_NOT_ALLOWED.refused(path=path, allowed="GET")
    return render(refused, {"allow": "GET"})


def _call_refused(reason: CallFailed | Refused) -> CallRefused:
    status = to_status(reason) if isinstance(reason, Refused) else reason.status
    code = reason.entry.code if isinstance(reason, Refused) else reason.reason
    return CallRefused(code, status.message, http_status(status))


def _tenant_of(call: RouterCall, method: MethodDescriptor) -> str:
    value: Any = call.request
    for field in tenant_path(method):
        value = getattr(value, field.name)
    return str(value)
