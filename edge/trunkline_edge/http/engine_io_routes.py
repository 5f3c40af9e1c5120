"""Serves Engine.IO's long polling (https://socket.io/docs/v4/engine-io-protocol/#http-long-polling)."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import BaseRoute
from trunkline.v1 import catalogue
from trunkline.v1.catalogue import Refused

from trunkline_edge.auth.cors import cors_headers, preflight_headers
from trunkline_edge.dialects.dialect import ConnectRequest, read_query
from trunkline_edge.dialects.registry import RouteMatch
from trunkline_edge.http.body_reader import BodyReader
from trunkline_edge.http.dialect_routes import RawPathRoute, upgrade_required
from trunkline_edge.http.error_responses import failure_response, respond
from trunkline_edge.http.sources import source_of
from trunkline_edge.http_errors import TEXT
from trunkline_edge.runtime import EdgeRuntime
from trunkline_edge.transport.engine_io_packets import VERSION_PARAMETER, check_version
from trunkline_edge.transport.engine_io_sessions import EngineIoSession, SessionRequest
from trunkline_edge.transport.polling_session import PollingSession

T = TypeVar("T")

#: The methods of a path of sessions.
ALLOWED = "GET, OPTIONS, POST"


class EngineIoRoutes:
    """A GET begins a session or waits for its packets; a POST brings packets of the client."""

    def __init__(self, runtime: EdgeRuntime, bodies: BodyReader) -> None:
        self._runtime = runtime
        self._bodies = bodies

    def routes(self) -> list[BaseRoute]:
        """Routes for Starlette. They come before those of WebSockets at the same paths."""
        paths = [path for dialect in self._runtime.registry.dialects for path in dialect.engine_io_paths]
        return [RawPathRoute(path, self._endpoint) for path in paths]

    async def _endpoint(self, request: Request) -> Response:
        if VERSION_PARAMETER not in request.query_params and request.method != "OPTIONS":
            return await upgrade_required(failure_response, request)
        source = source_of(request)
        tenant = ""
        try:
            asked = SessionRequest(dict(request.headers), read_query(request.url.query), source)
            session = self._runtime.engine_io.find(asked) if asked.sid else None
            tenant = session.tenant if session is not None else self._tenant_of(request, asked)
            policy = self._runtime.tenants.policy(tenant)
            if request.method == "OPTIONS":
                return Response(status_code=204, headers=preflight_headers(policy, source, ALLOWED))
            response = await respond(request, self._serve(request, asked, session))
        except Refused as reason:
            policy = self._runtime.tenants.policy(tenant)
            response = failure_response(reason)
        response.headers.update(cors_headers(policy, source) | {"cache-control": "no-store"})
        return response

    def _tenant_of(self, request: Request, asked: SessionRequest) -> str:
        """The tenant that a first request names; empty for none, or an invalid request."""
        route = self._route(request)
        try:
            plan = route.dialect.connect(
                ConnectRequest(route.parameters, asked.query, asked.headers, None, self._runtime.tenants)
            )
        except Refused:
            return ""
        return plan.opened.address.tenant

    def _route(self, request: Request) -> RouteMatch:
        route = self._runtime.registry.engine_io(request.scope["raw_path"].decode("latin-1"))
        assert route is not None
        return route

    async def _serve(
        self, request: Request, asked: SessionRequest, session: EngineIoSession | None
    ) -> Response:
        check_version(asked.query)
        if request.query_params.get("transport") != "polling":
            problem = "send transport=polling, or a WebSocket handshake"
            raise catalogue.INVALID_ADDRESS.refused(problem=problem)
        if request.method == "POST" and session is not None:
            async with self._bodies.of_any_type(request, session.tenant) as body:
                await session.receive(body)
            return Response("ok", media_type=TEXT)
        if request.method != "GET":
            reason = catalogue.METHOD_NOT_ALLOWED.refused(path=request.scope["path"], allowed=ALLOWED)
            return failure_response(reason, {"allow": ALLOWED})
        if session is not None:
            return Response(await _unless_disconnected(request, session.poll()), media_type=TEXT)
        return await self._open(request, asked)

    async def _open(self, request: Request, asked: SessionRequest) -> Response:
        remote_ip = request.client.host if request.client else ""
        session = PollingSession(self._runtime, remote_ip, asked)
        try:
            self._runtime.step(session.begin, self._route(request))
            opened = await _unless_disconnected(request, session.opened())
        except ClientDisconnect:
            session.abandon()
            raise
        return Response(opened, media_type=TEXT)


async def _unless_disconnected(request: Request, answer: Coroutine[Any, Any, T]) -> T:
    """Await the answer. Raises ClientDisconnect if the client leaves before."""
    answering = asyncio.ensure_future(answer)
    leaving = asyncio.ensure_future(_disconnect(request))
    try:
        await asyncio.wait({answering, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not answering.done():
            raise ClientDisconnect
        return answering.result()
    finally:
        for task in (answering, leaving):
            task.cancel()
        await asyncio.gather(answering, leaving, return_exceptions=True)


async def _disconnect(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
