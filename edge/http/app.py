"""Health, readiness and metrics."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from uvicorn.config import Config
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.server import ServerState

from edge.ops.metrics import EdgeCollector

if TYPE_CHECKING:
    from edge.shell import Shell


def protocol_factory(shell: Shell) -> Callable[[], asyncio.Protocol]:
    """Makes the protocol that serves one HTTP connection."""
    config = Config(make_app(shell), lifespan="off", log_config=None, access_log=False, ws="none")
    config.load()
    state = ServerState()
    return lambda: H11Protocol(config=config, server_state=state, app_state={})


def make_app(shell: Shell) -> Starlette:
    """The HTTP routes of one edge."""
    registry = CollectorRegistry()
    registry.register(EdgeCollector(shell))

    async def healthz(request: Request) -> Response:
        """The process works; what it is connected to does not matter."""
        return JSONResponse({"status": "ok", "connections": len(shell.core.connections)})

    async def readyz(request: Request) -> Response:
        """The edge can take clients: it is linked to a router and is not stopping."""
        ready = shell.core.uplink.is_up and not shell.is_stopping
        status = {"status": "ready" if ready else "not ready", "linked": shell.core.uplink.is_up}
        return JSONResponse(status, status_code=200 if ready else 503)

    async def metrics(request: Request) -> Response:
        """Counters in Prometheus' text format."""
        return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)

    routes = [Route("/healthz", healthz), Route("/readyz", readyz), Route("/metrics", metrics)]
    return Starlette(routes=routes)
