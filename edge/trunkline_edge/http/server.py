"""The HTTP server of an edge: its app, health, readiness and metrics."""

from __future__ import annotations

import asyncio
from typing import cast

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route
from uvicorn.config import Config
from uvicorn.server import ServerState

from trunkline_edge.http.body_reader import BodyReader
from trunkline_edge.http.caller_metadata import CallerMetadata
from trunkline_edge.http.dialect_routes import DialectRoutes
from trunkline_edge.http.engine_io_routes import EngineIoRoutes
from trunkline_edge.http.fair_worker import FairWorker
from trunkline_edge.http.protocol import HttpProtocol
from trunkline_edge.http.router_client import RouterClient
from trunkline_edge.http.token_callers import TokenCallers
from trunkline_edge.http.transcoding import routes
from trunkline_edge.ops.health import connection_stats
from trunkline_edge.ops.metrics import EdgeCollector
from trunkline_edge.runtime import EdgeRuntime
from trunkline_edge.transport.protocol_selector import ProtocolSelector
from trunkline_edge.transport.request_head import RequestParser

#: Time for the last responses when the edge stops.
DRAIN_TIMEOUT_S = 1.0


class HttpServer:
    """Serves HTTP on connections that a ProtocolSelector hands over."""

    def __init__(self, runtime: EdgeRuntime, router: RouterClient) -> None:
        self._runtime = runtime
        settings = runtime.settings
        self._config = Config(
            make_app(runtime, router),
            lifespan="off",
            log_config=None,
            access_log=False,
            ws="none",
            timeout_keep_alive=settings.http_keep_alive_s,
        )
        self._config.load()
        self._state = ServerState()

    def selector(self) -> asyncio.Protocol:
        """The protocol of a new connection, and of a kept one when the next request begins."""
        return ProtocolSelector(self._runtime, self._serve)

    def _serve(self, parser: RequestParser, received: bytes) -> asyncio.Protocol:
        return HttpProtocol(
            self._config,
            self._state,
            parser,
            received,
            timeout_s=self._runtime.settings.http_timeout_s,
            select=self._select,
            budget=self._runtime.budget,
            count_refused=self._runtime.count_refused,
        )

    def _select(
        self, transport: asyncio.Transport, received: bytes, has_ended: bool, is_writing_paused: bool
    ) -> None:
        """Select the protocol of the next request on a kept connection."""
        selector = self.selector()
        transport.set_protocol(selector)
        selector.connection_made(transport)
        if is_writing_paused:
            selector.pause_writing()
        selector.data_received(received)
        protocol = cast("asyncio.Protocol", transport.get_protocol())
        if has_ended and not protocol.eof_received():
            transport.close()

    async def drain(self) -> None:
        """Wait up to DRAIN_TIMEOUT_S for the last responses. Call it after the router client is closed."""
        if self._state.tasks:
            await asyncio.wait(self._state.tasks, timeout=DRAIN_TIMEOUT_S)


def make_app(runtime: EdgeRuntime, router: RouterClient) -> Starlette:
    """The Starlette app with all HTTP routes of an edge."""
    caller_metadata = CallerMetadata(runtime.tenants)
    bodies = BodyReader(runtime.settings.http_timeout_s, runtime.bodies)
    worker = FairWorker()
    token_callers = TokenCallers(runtime.admission, runtime.tenants, runtime.core.limits.frame_bytes)
    dialects = DialectRoutes(
        runtime.registry, runtime.tenants, router, caller_metadata, token_callers, bodies, worker
    )
    transcoder = routes(router, caller_metadata, token_callers, bodies, worker, runtime.settings.path_prefix)
    engine_io = EngineIoRoutes(runtime, bodies)
    # In this order: engine_io serves paths of dialects' WebSockets, too.
    served = [*_operator_routes(runtime), *engine_io.routes(), *dialects.routes(), *transcoder]
    return Starlette(routes=served)


def _operator_routes(runtime: EdgeRuntime) -> list[BaseRoute]:
    """Health, readiness and metrics."""
    registry = CollectorRegistry()
    registry.register(EdgeCollector(runtime.core, runtime.routers))

    async def healthz(request: Request) -> Response:
        """Liveness: the process answers, linked or not."""
        return JSONResponse({"status": "ok", **connection_stats(runtime.core)})

    async def readyz(request: Request) -> Response:
        """Readiness: the edge is linked to a router and not stopping."""
        linked = runtime.core.uplink.is_up
        ready = linked and not runtime.is_stopping
        status: dict[str, object] = {"status": "ready" if ready else "not ready", "linked": linked}
        if linked:
            status["router"] = runtime.routers.in_use
        return JSONResponse(status, status_code=200 if ready else 503)

    async def metrics(request: Request) -> Response:
        """Metrics in Prometheus' text format."""
        return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)

    return [Route("/healthz", healthz), Route("/readyz", readyz), Route("/metrics", metrics)]
