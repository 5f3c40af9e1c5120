"""An edge process: what it is made of, how it starts, and how it stops."""

from __future__ import annotations

import asyncio

import structlog

from edge import tenants_file
from edge.http.app import HttpServer
from edge.http.calls import RouterCalls
from edge.link.client import LinkClient
from edge.settings import EdgeSettings
from edge.shell import Shell
from edge.ws.port import Port
from shared import process
from shared.process import StartError

_log = structlog.get_logger()

#: Clients that may wait to be accepted by the kernel; a whole product may reconnect at once.
BACKLOG = 4096


async def serve(settings: EdgeSettings, stop: asyncio.Event) -> None:
    """Run an edge until the event is set. Raises StartError where it cannot start."""
    shell = Shell(settings, tenants_file.load(settings.tenants_file))
    calls = RouterCalls(settings.router)
    http = HttpServer(shell, calls)
    server = await listen(shell, http, settings.edge_listen)
    linked = asyncio.Event()
    link = LinkClient(shell, settings, linked.set)
    tasks = [asyncio.create_task(link.run()), asyncio.create_task(shell.run())]
    ready = asyncio.create_task(_say_ready(server, settings, linked))
    stopping = asyncio.create_task(stop.wait())
    await asyncio.wait({stopping, *tasks}, return_when=asyncio.FIRST_COMPLETED)
    await _close(server, shell, [ready, *tasks])
    await calls.close()
    await http.ended()


async def _close(server: asyncio.Server, shell: Shell, tasks: list[asyncio.Task[None]]) -> None:
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


async def listen(shell: Shell, http: HttpServer, address: str) -> asyncio.Server:
    """Listen for clients. Raises StartError where the address is not to be had."""
    host, _, port = address.rpartition(":")
    loop = asyncio.get_running_loop()
    try:
        return await loop.create_server(lambda: Port(shell, http.protocol), host, int(port), backlog=BACKLOG)
    except (OSError, ValueError) as error:
        problem = f"cannot listen on {address}: {error}"
        raise StartError(f"{problem}. TRUNKLINE_EDGE_LISTEN names another address.") from error


async def _say_ready(server: asyncio.Server, settings: EdgeSettings, linked: asyncio.Event) -> None:
    await linked.wait()
    host = settings.edge_listen.rpartition(":")[0]
    port = server.sockets[0].getsockname()[1]
    _log.info("edge is ready", listening=f"{host}:{port}", router=settings.router)
    process.say_listening(f"{host}:{port}")


def run(settings: EdgeSettings) -> int:
    """Run an edge in this process; returns its exit code."""
    return process.run("edge", lambda stop: serve(settings, stop))
