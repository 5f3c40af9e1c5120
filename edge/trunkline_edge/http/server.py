"""What an edge serves over HTTP."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route
from uvicorn.config import Config
from uvicorn.server import ServerState

from trunkline_edge.http import server_streaming
from trunkline_edge.http.caller_metadata import CallerMetadata
from trunkline_edge.http.dialect_routes import DialectRoutes
from trunkline_edge.http.protocol import HttpProtocol
from trunkline_edge.http.router_client import RouterClient
from trunkline_edge.http.transcoding import routes
from trunkline_edge.ops.health import figures
from trunkline_edge.ops.metrics import EdgeCollector
from trunkline_edge.transport.protocol_selector import ProtocolSelector

if TYPE_CHECKING:
    from trunkline_edge.runtime import EdgeRuntime

#: How long the last responses may take to be written when the edge stops.
END_WAIT_S = 1.0


class HttpServer:
    """Serves HTTP on the connections that the port hands over."""

    def __init__(self, shell: EdgeRuntime, calls: RouterClient) -> None:
        self._shell = shell
        self._config = Config(
            make_app(shell, calls), lifespan="off", log_config=None, access_log=False, ws="none"
        )
        self._config.load()
        self._state = ServerState()

    def protocol(self) -> asyncio.Protocol:
        """Serves one connection, until a request on it is not for HTTP."""
        return HttpProtocol(self._config, self._state, lambda: ProtocolSelector(self._shell, self.protocol))

    async def ended(self) -> None:
        """Wait until what was under way is answered, but not for long; to be called when calls are closed."""
        if self._state.tasks:
            await asyncio.wait(self._state.tasks, timeout=END_WAIT_S)


def make_app(shell: EdgeRuntime, calls: RouterClient) -> Starlette:
    """The HTTP routes of one edge."""
    access = CallerMetadata(shell.tenants)
    dialects = DialectRoutes(shell.registry, shell.tenants, calls, access)
    watches = server_streaming.routes(calls, access)
    return Starlette(routes=[*_operators_routes(shell), *dialects.routes(), *watches, *routes(calls, access)])


def _operators_routes(shell: EdgeRuntime) -> list[BaseRoute]:
    """Health, readiness and metrics."""
    registry = CollectorRegistry()
    registry.register(EdgeCollector(shell.core))

    async def healthz(request: Request) -> Response:
        """The process works; what it is connected to does not matter."""
        return JSONResponse({"status": "ok", **figures(shell.core)})

    async def readyz(request: Request) -> Response:
        """The edge can take clients: it is linked to a router and is not stopping."""
        ready = shell.core.uplink.is_up and not shell.is_stopping
        status = {"status": "ready" if ready else "not ready", "linked": shell.core.uplink.is_up}
        return JSONResponse(status, status_code=200 if ready else 503)

    async def metrics(request: Request) -> Response:
        """Counters in Prometheus' text format."""
        return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)

    return [Route("/healthz", healthz), Route("/readyz", readyz), Route("/metrics", metrics)]
