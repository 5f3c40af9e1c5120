"""An edge in this process, its clients on loopback, and a scripted router."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import ExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from ssl import SSLContext
from typing import Any, cast
from unittest.mock import patch

import grpc
import grpc.aio
import websockets
from grpc_health.v1._async import HealthServicer
from grpc_health.v1.health_pb2 import HealthCheckResponse
from grpc_health.v1.health_pb2_grpc import add_HealthServicer_to_server
from grpc_status import rpc_status
from trunkline.v1 import catalogue
from trunkline.v1.edge_service_pb2 import (
    ConnectionOpened,
    EdgeEntry,
    LinkHello,
    LinkRequest,
    LinkResponse,
    LinkWelcome,
    RouterEntry,
    TenantPolicy,
)
from trunkline.v1.edge_service_pb2_grpc import EdgeServiceServicer, add_EdgeServiceServicer_to_server
from trunkline_edge.app import listen
from trunkline_edge.auth.jwks import Fetch, FetchFailed
from trunkline_edge.http.router_client import RouterClient
from trunkline_edge.http.server import HttpServer
from trunkline_edge.link.client import LinkClient
from trunkline_edge.runtime import EdgeRuntime
from trunkline_edge.settings import EdgeSettings
from trunkline_edge.transport.protocol_selector import ProtocolSelector
from trunkline_runtime.refusals import to_status
from websockets.asyncio.client import ClientConnection

from tests.support.declared_tenants import policy
from tests.support.declared_tenants import policy_entries as told_of
from tests.support.patience import patient

#: Bound of every wait.
PATIENCE_S = patient(5)
QUERY = "tenant=t&agent=a&platform=web&conversation=group:team"
#: Bytes that the kernel keeps for a client on either side; buffers of unset size grow at an odd moment.
KERNEL_BYTES = 1 << 16


class ScriptedLink:
    """One edge's link, as its router sees it."""

    def __init__(self, context: Any, hello: LinkHello) -> None:
        self.hello = hello
        self.entries: asyncio.Queue[EdgeEntry] = asyncio.Queue()
        #: Batches that the edge will still take.
        self.credit = 0
        self.credit_came = asyncio.Event()
        self.over: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._context = context

    async def send(self, *entries: RouterEntry) -> None:
        """Send a batch; waits for credit."""
        async with asyncio.timeout(PATIENCE_S):
            while not self.credit:
                self.credit_came.clear()
                await self.credit_came.wait()
        self.credit -= 1
        await self._context.write(LinkResponse(entries=entries, credit=1))

    async def next(self, kind: str) -> Any:
        """Return the next entry from the edge, which must be of this kind."""
        entry = await asyncio.wait_for(self.entries.get(), PATIENCE_S)
        assert entry.WhichOneof("entry") == kind, entry
        return getattr(entry, kind)

    async def accept(self, topic: int = 1, opened: ConnectionOpened | None = None) -> int:
        """Accept a connection, by default the next one, and subscribe it to its home; return its number.

        Without `topic` its home is topic 1 already.
        """
        opened = opened or await self.next("opened")
        connection: int = opened.connection
        answer = LinkResponse()
        if topic:
            entry = answer.entries.add().topic
            entry.topic = topic
            entry.address.CopyFrom(opened.address)
        if not opened.restored:
            send = answer.entries.add().send
            send.connection = connection
            send.frame.connected.connection_id = opened.connection_id
            send.frame.connected.positions.add(address=opened.address).position.seq = 0
        join = answer.entries.add().join
        join.connection = connection
        join.topics.append(topic or 1)
        await self.send(*answer.entries)
        return connection

    async def ack(self, connection: int, ident: str) -> None:
        """Acknowledge a message."""
        entry = RouterEntry()
        entry.send.connection = connection
        entry.send.frame.ack.id = ident
        await self.send(entry)

    async def close(self, connection: int, code: int, reason: str) -> None:
        """Have a connection closed."""
        entry = RouterEntry()
        entry.close.connection = connection
        entry.close.closing.code, entry.close.closing.reason = code, reason
        await self.send(entry)

    async def publish(self, seq: int, text: str = "", topic: int = 1) -> None:
        """Publish a message."""
        entry = RouterEntry()
        entry.publish.topic = topic
        message = entry.publish.frame.message
        message.position.epoch, message.position.seq = "e", seq
        message.parts.add().text.text = text
        await self.send(entry)

    def end(self) -> None:
        """End the stream."""
        if not self.over.done():
            self.over.set_result(None)

    async def read(self) -> None:
        """Read batches of the edge."""
        while (batch := await self._context.read()) is not grpc.aio.EOF:
            self.took(batch)

    def took(self, batch: LinkRequest) -> None:
        """Take a batch."""
        self.credit += batch.credit
        self.credit_came.set()
        for entry in batch.entries:
            self.entries.put_nowait(entry)


class ScriptedRouter(EdgeServiceServicer):
    """Welcomes edges; the test does everything else."""

    def __init__(self) -> None:
        self.address = ""
        self.minor = catalogue.CONTRACT_MINOR
        self.welcomes = True
        #: Policies sent once an edge has linked; None to send none.
        self.policies: list[TenantPolicy] | None = [policy("t"), policy("demo")]
        #: Links are refused.
        self.is_standby = False
        #: Number of links, those that were refused or got no welcome included.
        self.attempts = 0
        self.health = HealthServicer()
        self._links: asyncio.Queue[ScriptedLink] = asyncio.Queue()

    async def link(self) -> ScriptedLink:
        """Return the next link."""
        return await asyncio.wait_for(self._links.get(), PATIENCE_S)

    async def report(self, serves: bool) -> None:
        """Report by the health service whether the router owns the log."""
        status = HealthCheckResponse.SERVING if serves else HealthCheckResponse.NOT_SERVING
        await self.health.set("trunkline.v1.EdgeService", status)

    async def take_over(self) -> None:
        """Own the log."""
        self.is_standby = False
        await self.report(True)

    async def lose(self) -> None:
        """Refuse links from now on; those that there are stay."""
        self.is_standby = True
        await self.report(False)

    async def Link(self, request_iterator: Any, context: Any) -> None:  # noqa: N802
        self.attempts += 1
        if self.is_standby:
            status = to_status(catalogue.ROUTER_STANDBY.refused())
            await context.abort_with_status(rpc_status.to_status(status))
        first = await context.read()
        link = ScriptedLink(context, first.hello)
        if not self.welcomes:
            self._links.put_nowait(link)
            await link.over
            return
        await context.write(
            LinkResponse(welcome=LinkWelcome(contract_minor=self.minor, lease_s=30), credit=64)
        )
        link.took(first)
        if self.policies is not None:
            await link.send(*told_of(*self.policies))
        self._links.put_nowait(link)
        reading = asyncio.create_task(link.read())
        try:
            await asyncio.wait({reading, link.over}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            link.end()
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)


@asynccontextmanager
async def running_router(
    port: int = 0, router: ScriptedRouter | None = None
) -> AsyncIterator[ScriptedRouter]:
    """Run a scripted router on loopback."""
    router = router or ScriptedRouter()
    server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
    add_EdgeServiceServicer_to_server(router, server)
    add_HealthServicer_to_server(router.health, server)
    router.address = f"127.0.0.1:{server.add_insecure_port(f'127.0.0.1:{port}')}"
    await server.start()
    try:
        yield router
    finally:
        await server.stop(None)


@dataclass
class Edge:
    """An edge in this process."""

    runtime: EdgeRuntime
    address: str
    linked: asyncio.Event
    #: Closes what tests have opened, also those that fail: a socket left open would fail another test.
    at_end: ExitStack = field(default_factory=ExitStack)
    #: Set where the edge speaks TLS.
    trusting: SSLContext | None = None

    def connect(self, query: str = QUERY, **options: Any) -> Any:
        """Connect a WebSocket client; see `websockets.connect`."""
        options = {"compression": None, "ping_interval": None, "open_timeout": PATIENCE_S, **options}
        options |= {"create_connection": self._made, "sock": self._connected()}
        scheme = "wss" if self.trusting else "ws"
        url = f"{scheme}://{self.address}/v1/connect?{query}"
        return websockets.connect(url, ssl=self.trusting, **options)

    def transport(self, number: int) -> Any:
        """Return the transport of a connection."""
        return self.runtime._transports[self.runtime.core.connections[number]]

    def _made(self, *arguments: Any, **options: Any) -> ClientConnection:
        client = ClientConnection(*arguments, **options)
        self.at_end.callback(lambda: hasattr(client, "transport") and abort(client.transport))
        return client

    def _connected(self) -> socket.socket:
        """Connect a TCP socket. Its buffer is set before: a window that shrinks later stalls both ways."""
        host, port = self.address.split(":")
        sock = socket.socket()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, KERNEL_BYTES)
        sock.connect((host, int(port)))
        sock.setblocking(False)
        return sock

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait until a condition holds."""
        async with asyncio.timeout(PATIENCE_S):
            while not condition():  # noqa: ASYNC110
                await asyncio.sleep(0.002)

    async def raw(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Open a TCP connection, with TLS if the edge has it."""
        name = "127.0.0.1" if self.trusting else None
        sock = self._connected()
        reader, writer = await asyncio.open_connection(sock=sock, ssl=self.trusting, server_hostname=name)
        # The writer, and not just its transport: nobody else may hold it.
        self.at_end.callback(lambda: abort(writer.transport))
        return reader, writer


def abort(transport: asyncio.BaseTransport) -> None:
    """Cut a connection, whatever state it is in."""
    # asyncio's own raises if it was closed with a buffer that was then taken.
    with suppress(AttributeError):
        cast("asyncio.Transport", transport).abort()


async def no_fetch(url: str) -> bytes:
    """Fail every fetch."""
    raise FetchFailed(f"nothing is at {url}")


@asynccontextmanager
async def running_edge(router: str, fetch: Fetch | None = None, **settings: Any) -> AsyncIterator[Edge]:
    """Run an edge on a free port. Fails if a callback raised."""
    loop = asyncio.get_running_loop()
    raised: list[dict[str, Any]] = []

    def note(_: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        # grpc.aio reads its wake-up socket from the loops of earlier tests, too (BlockingIOError).
        if "PollerCompletionQueue" not in context["message"]:
            raised.append(context)

    loop.set_exception_handler(note)
    # Ticks are short here, so a client that is silent or not read would soon be lost.
    options = {"heartbeat_s": 3600, "drain_s": 0.05, "edge_listen": "127.0.0.1:0", **settings}
    runtime = EdgeRuntime(EdgeSettings(router=router, **options), fetch or no_fetch)
    if runtime.settings.heartbeat_s >= 60:
        # An edge's first connection is pinged after a second, however long the interval.
        runtime.core.sessions.heartbeats._current = runtime.settings.heartbeat_s // 2
    transports: list[asyncio.BaseTransport] = []

    class WatchedPort(ProtocolSelector):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            transports.append(transport)
            transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, KERNEL_BYTES)
            super().connection_made(transport)

    watching = patch("trunkline_edge.http.server.ProtocolSelector", WatchedPort)
    watching.start()
    router_client = RouterClient(runtime.routers)
    http = HttpServer(runtime, router_client)
    listener = await listen(runtime, http)
    linked = asyncio.Event()

    def follow_link() -> None:
        linked.set()
        router_client.follow_link()

    link = LinkClient(runtime, runtime.settings, follow_link)
    tasks = [asyncio.create_task(link.run()), asyncio.create_task(runtime.run())]
    edge = Edge(runtime, str(listener.address), linked)
    try:
        yield edge
    finally:
        # Passes of the loop, for connections in the backlog to get their protocols: asyncio leaks the socket
        # of one that it has accepted when the listener closes.
        for _ in range(3):
            await asyncio.sleep(0)
        watching.stop()
        listener.close()
        edge.at_end.close()
        for transport in transports:
            abort(transport)
        for task in tasks:
            task.cancel()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        # Two passes of the loop, for each transport to report its close.
        await asyncio.sleep(0)
        await asyncio.sleep(0)
    assert raised == []
    assert [result for result in results if not isinstance(result, asyncio.CancelledError)] == []


@asynccontextmanager
async def edge_and_link(**settings: Any) -> AsyncIterator[tuple[Edge, ScriptedLink]]:
    """Run an edge, linked to a scripted router."""
    async with running_router() as router, running_edge(router.address, **settings) as edge:
        link = await router.link()
        await asyncio.wait_for(edge.linked.wait(), PATIENCE_S)
        yield edge, link


async def accepted(edge: Edge, link: ScriptedLink, topic: int = 1, **options: Any) -> tuple[Any, int]:
    """Connect a client that has read `connected`; return it and its number."""
    coming = connecting(edge, **options)
    number = await link.accept(topic)
    client = await coming
    assert parse(await received(client))["type"] == "connected"
    return client, number


async def _connect(edge: Edge, options: dict[str, Any]) -> Any:
    return await edge.connect(**options)


def connecting(edge: Edge, **options: Any) -> asyncio.Future[Any]:
    """Begin to connect a client; await it for the client, once the handshake is answered."""
    coming = asyncio.ensure_future(_connect(edge, options))
    edge.at_end.callback(coming.cancel)
    return coming


async def received(client: Any) -> Any:
    """Return the next message of a client."""
    return await asyncio.wait_for(client.recv(), PATIENCE_S)


async def hears(client: Any) -> dict[str, Any]:
    """Return the next JSON frame of a client."""
    return parse(await received(client))


def parse(payload: str | bytes) -> dict[str, Any]:
    """Parse a frame of the JSON dialect."""
    frame: dict[str, Any] = json.loads(payload)
    return frame


async def closed(client: Any) -> int:
    """Read everything, and return the code with which a client is closed."""
    try:
        while True:
            await received(client)
    except websockets.ConnectionClosed:
        code: int = client.close_code
        return code


def upgrade(query: str = QUERY, extra: str = "") -> bytes:
    """Return the request of a handshake."""
    key = base64.b64encode(os.urandom(16)).decode()
    return (
        f"GET /v1/connect?{query} HTTP/1.1\r\nHost: localhost\r\n"
        "Upgrade: websocket\r\nConnection: Upgrade\r\n"
        f"Sec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n{extra}\r\n"
    ).encode()


async def answer(reader: asyncio.StreamReader) -> bytes:
    """Read everything until the edge closes."""
    return await asyncio.wait_for(reader.read(), PATIENCE_S)


def say(ident: str, text: str = "hello") -> str:
    """Return a `message` frame."""
    return json.dumps({"type": "message", "id": ident, "parts": [{"type": "text", "text": text}]})


def reset(writer: asyncio.StreamWriter) -> None:
    """Break a TCP connection with RST."""
    sock = writer.get_extra_info("socket")
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\x00\x00\x00\x00\x00\x00\x00")
    writer.transport.abort()
