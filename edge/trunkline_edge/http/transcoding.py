"""HTTP/JSON transcoding of RPCs, following the contract's `google.api.http` annotations."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, NamedTuple, cast

from google.protobuf.message import Message
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Match, Route
from starlette.types import Receive, Scope, Send
from trunkline.v1 import catalogue
from trunkline.v1.catalogue import Refused

from trunkline_edge.auth.cors import cors_headers, preflight_headers
from trunkline_edge.http import openapi
from trunkline_edge.http.bindings import Binding, bindings
from trunkline_edge.http.body_reader import BodyReader
from trunkline_edge.http.caller_metadata import CallerMetadata
from trunkline_edge.http.error_responses import failure_response, respond
from trunkline_edge.http.fair_worker import LARGE_BYTES, FairWorker
from trunkline_edge.http.json_encode import response_json
from trunkline_edge.http.methods import allowed_methods
from trunkline_edge.http.path_router import PathRouter
from trunkline_edge.http.request import is_quick, request_message
from trunkline_edge.http.router_client import CallFailed, RouterClient
from trunkline_edge.http.server_streaming import EventStream
from trunkline_edge.http.sources import source_of
from trunkline_edge.http.token_callers import TokenCallers
from trunkline_edge.transport.body_budget import STRANGERS

#: Prefix of every path in the contract.
PREFIX = "/v1/"

#: Refusals for missing permission.
_DENIALS = (
    catalogue.UNAUTHORIZED,
    catalogue.FORBIDDEN,
    catalogue.ORIGIN_FORBIDDEN,
    catalogue.TOKEN_EXPIRED,
)


def routes(
    router: RouterClient,
    caller_metadata: CallerMetadata,
    token_callers: TokenCallers,
    bodies: BodyReader,
    worker: FairWorker,
    path_prefix: str = "",
) -> list[BaseRoute]:
    """The transcoder, and /openapi.json, which describes its paths below `path_prefix`.

    Mount them after more specific routes: the transcoder answers every path below /v1/.
    """
    known = bindings()
    return [
        Route("/openapi.json", openapi.endpoint(known, path_prefix), methods=["GET"]),
        Transcoder(router, caller_metadata, token_callers, bodies, worker, known),
    ]


class CallTarget(NamedTuple):
    """The binding that a request matches, with the values of its path's variables."""

    binding: Binding
    values: tuple[str, ...]


class Transcoder(BaseRoute):
    """Answers every request below /v1/."""

    def __init__(
        self,
        router: RouterClient,
        caller_metadata: CallerMetadata,
        token_callers: TokenCallers,
        bodies: BodyReader,
        worker: FairWorker,
        known: Sequence[Binding],
    ) -> None:
        self._router = router
        self._caller_metadata = caller_metadata
        self._token_callers = token_callers
        self._bodies = bodies
        self._worker = worker
        self._path_router: PathRouter[Binding] = PathRouter()
        for binding in known:
            self._path_router.add(binding.http_method, binding.pattern, binding)

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        """See BaseRoute."""
        ours = scope["type"] == "http" and scope["path"].startswith(PREFIX)
        return (Match.FULL if ours else Match.NONE), {}

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See BaseRoute."""
        request = Request(scope, receive)
        cors: dict[str, str] = {}
        response = await respond(request, self._serve(request, cors))
        await response(scope, receive, with_headers(send, cors))

    async def _serve(self, request: Request, cors: dict[str, str]) -> Response | EventStream:
        """Make the call. Sets the headers of the response, errors included, in `cors`."""
        target = self._target(request, cors)
        if isinstance(target, Response):
            return target
        if target.binding.method.server_streaming:
            return await self._stream(request, target)
        return await self._call(request, target)

    def _target(self, request: Request, cors: dict[str, str]) -> CallTarget | Response:
        """The call that the path and method name, or the response to OPTIONS or to a wrong method.

        Sets `cors`. Raises Refused for an unknown path.
        """
        path = request.scope["raw_path"].decode("latin-1")
        try:
            match = self._path_router.find(path)
        except UnicodeDecodeError:
            raise catalogue.INVALID_ARGUMENT.refused(field="path", problem="is not UTF-8") from None
        if match is None:
            raise catalogue.NO_SUCH_PATH.refused(path=request.scope["path"])
        method = request.method
        source = source_of(request)
        policy = self._caller_metadata.tenants.policy(
            next(iter(match.methods.values())).tenant_in(match.values)
        )
        cors.update(cors_headers(policy, source))
        binding = match.methods.get("GET" if method == "HEAD" else method)
        if binding is not None:
            return CallTarget(binding, match.values)
        allowed = allowed_methods(match.methods)
        if method == "OPTIONS":
            cors.clear()
            return Response(status_code=204, headers=preflight_headers(policy, source, allowed))
        refused = catalogue.METHOD_NOT_ALLOWED.refused(path=request.scope["path"], allowed=allowed)
        return failure_response(refused, {"allow": allowed})

    async def _call(self, request: Request, target: CallTarget) -> Response:
        binding = target.binding
        tenant = binding.tenant_in(target.values)
        try:
            if binding.has_body:
                self._caller_metadata.admit(request, tenant, binding.scope)
            client = await self._token_callers.identify(request, binding, tenant)
            metadata = self._caller_metadata.metadata(request, tenant, binding.scope, client)
        except Refused as reason:
            if binding.is_audited and reason.entry in _DENIALS:
                await self._report_denied(request, target, tenant)
            raise
        max_bytes = client.body_bytes if client is not None else None
        share = self._caller_metadata.share(request, tenant, client)
        async with self._bodies.json(request, share, binding.has_body, max_bytes) as body:
            if client is not None:
                client.take(body)
            arguments = (binding, target.values, request.scope["query_string"], body)
            if is_quick(body):
                message = request_message(*arguments)
            else:
                message = await self._worker.run(share, request_message, *arguments)
        response = await self._router.unary(binding.method, message, metadata=metadata)
        if share == STRANGERS:
            self._caller_metadata.accepted(request, tenant)
        if response.ByteSize() <= LARGE_BYTES:
            content = response_json(response, binding.response_field)
        else:
            content = await self._worker.run(tenant, response_json, response, binding.response_field)
        return Response(content, 200, {"cache-control": "no-store"}, "application/json")

    async def _report_denied(self, request: Request, target: CallTarget, tenant: str) -> None:
        """Let the router record an attempt that was refused here, before its body was read."""
        binding = target.binding
        metadata = self._caller_metadata.of_denied(request, tenant, binding.scope)
        if metadata is not None:
            with suppress(CallFailed, Refused):
                message = request_message(binding, target.values, b"", b"")
                await self._router.unary(binding.method, message, metadata=metadata)

    async def _stream(self, request: Request, target: CallTarget) -> EventStream:
        binding = target.binding
        if request.method != "GET":
            # No HEAD: it would make a call that has no end.
            raise catalogue.NO_SUCH_PATH.refused(path=request.scope["path"])
        tenant = binding.tenant_in(target.values)
        client = await self._token_callers.identify(request, binding, tenant)
        metadata = self._caller_metadata.metadata(request, tenant, binding.scope, client)
        async with self._bodies.json(request, tenant, expected=False):
            message = request_message(binding, target.values, request.scope["query_string"], b"")
        messages = self._router.stream(binding.method, message, metadata=metadata)
        encode = partial(self._encode_event, tenant, binding)
        return await EventStream.open(binding, encode, cast("AsyncGenerator[Message]", messages))

    async def _encode_event(self, tenant: str, binding: Binding, message: Message) -> bytes:
        if message.ByteSize() <= LARGE_BYTES:
            return response_json(message, binding.response_field)
        return await self._worker.run_later(tenant, response_json, message, binding.response_field)


def with_headers(send: Send, headers: dict[str, str]) -> Send:
    """A `send` that adds headers to the response."""
    if not headers:
        return send
    added = [(name.encode(), value.encode("latin-1")) for name, value in headers.items()]

    async def send_with_headers(message: Any) -> None:
        if message["type"] == "http.response.start":
            message["headers"] = [*message["headers"], *added]
        await send(message)

    return send_with_headers
