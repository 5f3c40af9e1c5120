"""An edge process: what it is made of, how it starts, and how it stops."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import structlog
from trunkline_runtime import process
from trunkline_runtime.certificates import ReloadingFile, TlsError, server_context
from trunkline_runtime.process import StartError

from trunkline_edge.auth.jwks_http import JwksHttpClient
from trunkline_edge.http.router_client import RouterClient
from trunkline_edge.http.server import HttpServer
from trunkline_edge.link.client import LinkClient
from trunkline_edge.router_channel import RouterChannelFactory
from trunkline_edge.runtime import EdgeRuntime
from trunkline_edge.settings import EdgeSettings
from trunkline_edge.transport.protocol_selector import ProtocolSelector
from trunkline_edge.transport.tls_transport import TlsTransport

_log = structlog.get_logger()

#: Clients that may wait to be accepted by the kernel; a whole product may reconnect at once.
BACKLOG = 4096


async def serve(settings: EdgeSettings, stop: asyncio.Event) -> None:
    """Run an edge until the event is set. Raises StartError where it cannot start."""
    fetch = JwksHttpClient()
    shell = EdgeRuntime(settings, fetch)
    way = RouterChannelFactory.of(settings)
    calls = RouterClient(settings.router, way)
    http = HttpServer(shell, calls)
    server = await listen(shell, http)
    linked = asyncio.Event()
    link = LinkClient(shell, settings, linked.set, way)
    tasks = [asyncio.create_task(run) for run in (link.run(), shell.run(), shell.jwks.run())]
    ready = asyncio.create_task(_say_ready(server, settings, linked))
    stopping = asyncio.create_task(stop.wait())
    await asyncio.wait({stopping, *tasks}, return_when=asyncio.FIRST_COMPLETED)
    await _close(server, shell, [ready, *tasks])
    await shell.jwks.aclose()
    await fetch.aclose()
    await calls.close()
    await http.ended()


async def _close(server: asyncio.Server, shell: EdgeRuntime, tasks: list[asyncio.Task[None]]) -> None:
    """Stop: 1. take no more clients, 2. send those there are elsewhere, 3. end the link."""
    _log.info("edge is stopping", connections=len(shell.core.connections))
    server.close()
    failed = [task for task in tasks if task.done() and task.exception()]
    await shell.close_all()
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    for task in failed:
        task.result()


async def listen(shell: EdgeRuntime, http: HttpServer) -> asyncio.Server:
    """Listen for clients. Raises StartError where the address is not to be had."""
    address = shell.settings.edge_listen
    host, _, port = address.rpartition(":")
    loop = asyncio.get_running_loop()
    try:
        return await loop.create_server(_clients(shell, http), host, int(port), backlog=BACKLOG)
    except (OSError, ValueError) as error:
        problem = f"cannot listen on {address}: {error}"
        raise StartError(f"{problem}. TRUNKLINE_EDGE_LISTEN names another address.") from error


def _clients(shell: EdgeRuntime, http: HttpServer) -> Callable[[], asyncio.Protocol]:
    """Makes the protocol of each connection. Raises StartError where a certificate is of no use."""
    certificate, key = shell.settings.tls_cert, shell.settings.tls_key
    if (certificate is None) != (key is None):
        raise StartError("TRUNKLINE_TLS_CERT and TRUNKLINE_TLS_KEY need one another: set both.")
    if certificate is None or key is None:
        return lambda: ProtocolSelector(shell, http.protocol)
    try:
        context = ReloadingFile([certificate, key], lambda: server_context(certificate, key))
    except TlsError as error:
        raise StartError(f"{error}. TRUNKLINE_TLS_CERT and TRUNKLINE_TLS_KEY name the files.") from None
    timeout_s = shell.settings.handshake_timeout_s
    return lambda: TlsTransport(context.current, ProtocolSelector(shell, http.protocol), timeout_s)


async def _say_ready(server: asyncio.Server, settings: EdgeSettings, linked: asyncio.Event) -> None:
    await linked.wait()
    host = settings.edge_listen.rpartition(":")[0]
    port = server.sockets[0].getsockname()[1]
    _log.info("edge is ready", listening=f"{host}:{port}", router=settings.router)
    process.say_listening(f"{host}:{port}")


def run(settings: EdgeSettings) -> int:
    """Run an edge in this process; returns its exit code."""
    return process.run("edge", lambda stop: serve(settings, stop))
