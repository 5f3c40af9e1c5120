"""Engine.IO clients of an edge in this process: by single requests, and python-socketio."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import socketio
import websockets

from tests.edge.transport.edge_loopback import PATIENCE_S, Edge, ScriptedLink

API = {"x-apikey": "t:a", "x-platform": "web"}
ROUTER = {"platform": "web", "authorization": "t:a"}

SEPARATOR = "\x1e"


class Polling:
    """A session by long polling, of which the test makes each request."""

    def __init__(self, edge: Edge, headers: dict[str, str] | None = None) -> None:
        self.sid = ""
        self.opened: dict[str, Any] = {}
        self.url = f"http://{edge.address}/ws/?EIO=4&transport=polling"
        self._first = API if headers is None else headers
        self.http = httpx.AsyncClient(timeout=PATIENCE_S, trust_env=False)

    async def open(self) -> httpx.Response:
        """Send the handshake."""
        response = await self.http.get(self.url, headers=self._first)
        if response.status_code == 200:
            assert response.text[0] == "0"
            self.opened = json.loads(response.text[1:])
            self.sid = self.opened["sid"]
        return response

    async def get(self, **headers: str) -> httpx.Response:
        """Poll once."""
        return await self.http.get(f"{self.url}&sid={self.sid}", headers=headers)

    async def poll(self) -> list[str]:
        """Poll until there is a packet that is no ping; pings are answered."""
        packets: list[str] = []
        while not packets:
            response = await self.get()
            assert response.status_code == 200, response.text
            packets = response.text.split(SEPARATOR)
            if "2" in packets:
                packets.remove("2")
                await self.send("3")
        return packets

    async def post(self, *packets: str | bytes, **headers: str) -> httpx.Response:
        """Send packets."""
        body = b"\x1e".join(each if isinstance(each, bytes) else each.encode() for each in packets)
        headers = {"content-type": "text/plain;charset=UTF-8"} | headers
        return await self.http.post(f"{self.url}&sid={self.sid}", content=body, headers=headers)

    async def send(self, *packets: str) -> None:
        """Send packets, which must be accepted."""
        response = await self.post(*packets)
        assert (response.status_code, response.text) == (200, "ok")

    def upgrade(self, **options: Any) -> Any:
        """Connect the WebSocket to which the session is to move."""
        url = f"ws{self.url.removeprefix('http').replace('polling', 'websocket')}&sid={self.sid}"
        return websockets.connect(
            url, compression=None, open_timeout=PATIENCE_S, ping_interval=None, **options
        )


@asynccontextmanager
async def polling(
    edge: Edge, link: ScriptedLink, *, confirmed: bool = True
) -> AsyncIterator[tuple[Polling, int]]:
    """Open a session and connect its namespace; yield it and its connection's number."""
    client = Polling(edge)
    async with client.http:
        opening = asyncio.ensure_future(client.open())
        number = await link.accept()
        await opening
        if confirmed:
            await client.send("40")
            (confirmation,) = await client.poll()
            assert confirmation.startswith('40{"sid":"')
        yield client, number


def event(value: Any, number: int | str = "") -> str:
    """Return the packet of an event `message`."""
    return f"42{number}{json.dumps(['message', value])}"


def value_of(packet: str) -> Any:
    """Return the value of an event `message`."""
    assert packet.startswith("42"), packet
    name, value = json.loads(packet[2:])
    assert name == "message"
    return value


@asynccontextmanager
async def connected(
    edge: Edge, link: ScriptedLink, transports: list[str], headers: dict[str, str] = API
) -> AsyncIterator[tuple[socketio.AsyncClient, asyncio.Queue[tuple[str, Any]], int]]:
    """Connect python-socketio's client; yield it, its events by name, and its connection's number."""
    client = socketio.AsyncClient(reconnection=False)
    events: asyncio.Queue[tuple[str, Any]] = asyncio.Queue()
    client.on("*", lambda name, *values: events.put_nowait((name, *values)))
    client.on("disconnect", lambda reason: events.put_nowait(("disconnect", reason)))
    coming = asyncio.ensure_future(
        client.connect(
            f"http://{edge.address}",
            headers=headers,
            socketio_path="ws",
            transports=transports,
            wait_timeout=PATIENCE_S,
        )
    )
    number = await link.accept()
    await coming
    try:
        yield client, events, number
    finally:
        await client.disconnect()
