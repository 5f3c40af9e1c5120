"""Edge process: composition, start and ordered shutdown."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import structlog
from trunkline_runtime import process
from trunkline_runtime.certificates import ReloadingFile, TlsError, server_context
from trunkline_runtime.descriptors import watch
from trunkline_runtime.listen_address import ListenAddress
from trunkline_runtime.process import StartError

from trunkline_edge import listener
from trunkline_edge.auth.jwks_http import JwksHttpClient
from trunkline_edge.http.router_client import RouterClient
from trunkline_edge.http.server import HttpServer
from trunkline_edge.http.upload_reader import UploadReader
from trunkline_edge.link.client import LinkClient
from trunkline_edge.listener import Listener
from trunkline_edge.router_channel import RouterChannelFactory
from trunkline_edge.runtime import EdgeRuntime
from trunkline_edge.settings import EdgeSettings
from trunkline_edge.transport.tls_transport import TlsTransport

_log = structlog.get_logger()


async def serve(settings: EdgeSettings, stop: asyncio.Event) -> None:
    """Run an edge until `stop` is set. Raises StartError if it cannot start."""
    settings = _fitting(settings)
    fetch = JwksHttpClient()
    runtime = EdgeRuntime(settings, fetch)
    channels = RouterChannelFactory.from_settings(settings)
    router = RouterClient(runtime.routers, channels)
    runtime.uploads.read = UploadReader(router).read
    http = HttpServer(runtime, router)
    listening = await listen(runtime, http)
    linked = asyncio.Event()

    def follow_link() -> None:
        linked.set()
        router.follow_link()

    link = LinkClient(runtime, settings, follow_link, channels)
    tasks = [asyncio.create_task(run) for run in (link.run(), runtime.run(), runtime.jwks.run())]
    ready = asyncio.create_task(_announce_ready(listening.address, runtime, linked))
    stopping = asyncio.create_task(stop.wait())
    await asyncio.wait({stopping, *tasks}, return_when=asyncio.FIRST_COMPLETED)
    await _close(listening, runtime, [ready, *tasks])
    await runtime.jwks.aclose()
    await fetch.aclose()
    await router.close()
    await http.drain()


def _fitting(settings: EdgeSettings) -> EdgeSettings:
    """The settings with as many connections as descriptors allow; then at most a third of them for HTTP."""
    wanted = settings.max_connections + settings.max_http_connections
    fitting = watch.raise_limit(wanted, "TRUNKLINE_MAX_CONNECTIONS")
    if fitting == wanted:
        return settings
    http = min(settings.max_http_connections, max(1, fitting // 3))
    connections = min(settings.max_connections, max(1, fitting - http))
    return settings.model_copy(update={"max_connections": connections, "max_http_connections": http})


async def _close(listening: Listener, runtime: EdgeRuntime, tasks: list[asyncio.Task[None]]) -> None:
    """Shut down: 1. stop listening, 2. close every client, 3. end the link."""
    _log.info("edge is stopping", connections=len(runtime.core.connections))
    listening.close()
    failed = [task for task in tasks if task.done() and task.exception()]
    await runtime.close_all()
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    for task in failed:
        task.result()


async def listen(runtime: EdgeRuntime, http: HttpServer) -> Listener:
    """Listen for clients. Raises StartError if the address cannot be used."""
    address = ListenAddress.parse(runtime.settings.edge_listen)
    try:
        return await listener.listen(address, _protocol_factory(runtime, http))
    except OSError as error:
        problem = f"cannot listen on {address}: {error}"
        raise StartError(f"{problem}. TRUNKLINE_EDGE_LISTEN names another address.") from error


def _protocol_factory(runtime: EdgeRuntime, http: HttpServer) -> Callable[[], asyncio.Protocol]:
    """Return the factory of connection protocols. Raises StartError if a certificate cannot be used."""
    certificate, key = runtime.settings.tls_cert, runtime.settings.tls_key
    if (certificate is None) != (key is None):
        raise StartError("TRUNKLINE_TLS_CERT and TRUNKLINE_TLS_KEY must be set together.")
    if certificate is None or key is None:
        return http.selector
    try:
        context = ReloadingFile([certificate, key], lambda: server_context(certificate, key))
    except TlsError as error:
        raise StartError(f"{error}. TRUNKLINE_TLS_CERT and TRUNKLINE_TLS_KEY name the files.") from None
    timeout_s = runtime.settings.handshake_timeout_s
    broken = runtime.protocol_broken
    return lambda: TlsTransport(context.current, http.selector(), timeout_s, broken, runtime.budget)


async def _announce_ready(address: ListenAddress, runtime: EdgeRuntime, linked: asyncio.Event) -> None:
    await linked.wait()
    settings = runtime.settings
    scheme = "https" if settings.tls_cert else "http"
    # For a person to open: nobody can connect to all interfaces, nor a browser to a Unix socket.
    url = {} if address.path else {"url": f"{scheme}://{address.reachable}{settings.path_prefix}"}
    _log.info("edge is ready", listening=str(address), **url, router=runtime.routers.in_use)
    process.announce_listening(str(address))


def run(settings: EdgeSettings) -> int:
    """Run an edge in this process; return its exit code."""
    return process.run("edge", lambda stop: serve(settings, stop))
