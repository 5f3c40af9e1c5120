"""HTTP/JSON for every unary RPC, by the `google.api.http` annotations of the contract."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Match, Route
from starlette.types import Receive, Scope, Send
from trunkline.v1 import catalogue

from trunkline_edge.http import openapi
from trunkline_edge.http.bindings import Binding, bindings
from trunkline_edge.http.body_reader import BodyReader
from trunkline_edge.http.caller_metadata import CallerMetadata
from trunkline_edge.http.error_responses import answered, failure_response
from trunkline_edge.http.json_encode import response_json
from trunkline_edge.http.path_router import PathRouter
from trunkline_edge.http.request import request_message
from trunkline_edge.http.router_client import CallFailed, RouterClient

#: All paths of the contract begin with it.
PREFIX = "/v1/"

#: Larger messages are read and written beside the loop, which has sockets to serve meanwhile.
LARGE_BYTES = 16 << 10


def routes(calls: RouterClient, access: CallerMetadata) -> list[BaseRoute]:
    """All that the contract's annotations name, and /openapi.json, which describes it.

    To be mounted after more specific routes below /v1/: what is not found there is answered here.
    """
    known = bindings()
    return [
        Route("/openapi.json", openapi.endpoint(known), methods=["GET"]),
        Transcoder(calls, access, known),
    ]


class TranscodedRoute(NamedTuple):
    """What a request asks for."""

    binding: Binding
    values: tuple[str, ...]


class Transcoder(BaseRoute):
    """Answers every request below /v1/."""

    def __init__(self, calls: RouterClient, access: CallerMetadata, known: Sequence[Binding]) -> None:
        self._calls = calls
        self._access = access
        self._bodies = BodyReader()
        # One at a time: each takes turns with the loop for the interpreter.
        self._aside = asyncio.Semaphore(1)
        self._table: PathRouter[Binding] = PathRouter()
        for binding in known:
            self._table.add(binding.http_method, binding.pattern, binding)

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        """See BaseRoute."""
        ours = scope["type"] == "http" and scope["path"].startswith(PREFIX)
        return (Match.FULL if ours else Match.NONE), {}

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See BaseRoute."""
        request = Request(scope, receive)
        response = await answered(request, self._respond(request))
        await response(scope, receive, send)

    async def _respond(self, request: Request) -> Response:
        target = self._target(request)
        return target if isinstance(target, Response) else await self._call(request, target)

    def _target(self, request: Request) -> TranscodedRoute | Response:
        """What is asked for, or the answer where that is not a call. Raises Refused."""
        path = request.scope["raw_path"].decode("latin-1")
        try:
            found = self._table.find(path)
        except UnicodeDecodeError:
            raise catalogue.INVALID_ARGUMENT.refused(field="path", problem="is not UTF-8") from None
        if found is None:
            raise catalogue.NO_SUCH_PATH.refused(path=request.scope["path"])
        method = request.method
        binding = found.methods.get("GET" if method == "HEAD" else method)
        if binding is not None:
            return TranscodedRoute(binding, found.values)
        allowed = _allowed(found.methods)
        if method == "OPTIONS":
            return Response(status_code=204, headers={"allow": allowed})
        refused = catalogue.METHOD_NOT_ALLOWED.refused(path=request.scope["path"], allowed=allowed)
        return failure_response(CallFailed.of(refused), {"allow": allowed})

    async def _call(self, request: Request, target: TranscodedRoute) -> Response:
        binding = target.binding
        if binding.method.server_streaming:
            # Served by a route of its own, where there is one.
            raise catalogue.NO_SUCH_PATH.refused(path=request.scope["path"])
        tenant = binding.tenant_in(target.values)
        metadata = self._access.metadata(request, tenant, binding.scope)
        if binding.has_body:
            self._access.admit(request, tenant, binding.scope)
        async with self._bodies.body(request, binding.has_body) as body:
            arguments = (binding, target.values, request.scope["query_string"], body)
            if len(body) <= LARGE_BYTES:
                message = request_message(*arguments)
            else:
                async with self._aside:
                    message = await asyncio.to_thread(request_message, *arguments)
        response = await self._calls.unary(binding.method, message, metadata=metadata)
        if response.ByteSize() <= LARGE_BYTES:
            content = response_json(response, binding.response_field)
        else:
            async with self._aside:
                content = await asyncio.to_thread(response_json, response, binding.response_field)
        return Response(content, 200, {"cache-control": "no-store"}, "application/json")


def _allowed(methods: Iterable[str]) -> str:
    return ", ".join(sorted({*methods, "OPTIONS", *(["HEAD"] if "GET" in methods else [])}))
