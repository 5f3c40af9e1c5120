"""maim_message's tenant protocol: client on a bare socket, HTTP calls of backends, and a fleet for both."""

from __future__ import annotations

import asyncio
import json
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
from websockets.asyncio.client import ClientConnection, connect

from tests.e2e.fleet import Fleet, fleet_of
from tests.support.patience import patient
from tests.support.processes import Process

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Self

TIMEOUT_S = patient(15)
TENANTS = """
[tenants.demo]
open_to = "loopback"
agent = "echo"
[tenants.acme]
open_to = "loopback"
agent = "echo"
[tenants.locked]
agent = "echo"
tokens = ["s3cret"]
"""
SCRIPT = Path(__file__).with_name("maim_client_script.py")

Frame = dict[str, Any]


@contextmanager
def maim_fleet(data: Path) -> Iterator[Fleet]:
    """Run a router with four tenants, an edge, and a worker for agent `echo` of `demo`."""
    tenants = data / "tenants.toml"
    tenants.write_text(TENANTS)
    env = {"TRUNKLINE_TENANTS": "bare", "TRUNKLINE_TENANTS_FILE": str(tenants)}
    with fleet_of(data, edges=1, **env) as fleet:
        fleet.start_worker("reply")
        yield fleet


def stock_client(*args: str) -> Process:
    """Start the unmodified client from PyPI in a process; the script documents its modes."""
    return Process(
        [sys.executable, str(SCRIPT), *args],
        {"HEARS_WITHIN_S": str(patient(10))},
        "stock client",
        SCRIPT.parent,
    )


async def next_json_line(process: Process) -> Any:
    """Return the next JSON line that a process prints."""
    return json.loads(await asyncio.to_thread(process.line))


class MaimClient:
    """WebSocket client; `inbox` holds frames that no test has read yet."""

    def __init__(self, edge: Process, place: str, query: str = "", **headers: str) -> None:
        """`place` is `tenant/platform` or `tenant/agent/platform`."""
        self._url = f"ws://{edge.address}/ws/{place}{query}"
        self._headers = headers
        self.inbox: list[Frame] = []
        self.confirmed: Frame = {}
        self.ws: ClientConnection

    async def __aenter__(self) -> Self:
        self.ws = await connect(
            self._url, additional_headers=self._headers, max_size=None, open_timeout=TIMEOUT_S
        )
        self.confirmed = await self.receive()
        assert self.confirmed["type"] == "connection_confirmed", self.confirmed
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self.ws.close()

    async def send(self, frame: Frame) -> None:
        """Send a frame as text."""
        await self.ws.send(json.dumps(frame))

    async def receive(self) -> Frame:
        """Receive the next frame except heartbeats, which arrive at any time."""
        while True:
            frame: Frame = json.loads(await self.text())
            if frame["type"] != "heartbeat":
                return frame

    async def text(self) -> str:
        """Receive the next frame as text."""
        async with asyncio.timeout(TIMEOUT_S):
            text = await self.ws.recv()
        assert isinstance(text, str)
        return text

    async def next(self, *types: str, **fields: Any) -> Frame:
        """Receive the next frame of these types with these fields; others stay in the inbox."""
        for index, frame in enumerate(self.inbox):
            if _fits(frame, types, fields):
                return self.inbox.pop(index)
        while True:
            frame = await self.receive()
            if _fits(frame, types, fields):
                return frame
            self.inbox.append(frame)

    async def frames_so_far(self) -> list[Frame]:
        """Return all unread frames, after a round trip to the router."""
        # Control characters are invalid in ids: the frame has no effect except a rejection.
        await self.send({"type": "fence", "message_id": "\n"})
        await self.next("message_result", message_id="\n")
        frames, self.inbox = self.inbox, []
        return frames

    async def say(self, message_id: str, text: str, **fields: Any) -> Frame:
        """Send a text like MaiMBot's clients; return its `message_result`."""
        await self.send({**chat(text), "message_id": message_id, **fields})
        return await self.next("message_result", message_id=message_id)


def _fits(frame: Frame, types: tuple[str, ...], fields: Frame) -> bool:
    return frame["type"] in types and all(frame.get(name) == value for name, value in fields.items())


def chat(text: str) -> Frame:
    """Return a chat frame like those of MaiMBot's clients."""
    return {
        "type": "chat",
        "message_info": {
            "platform": "qq",
            "time": 1763370000.5,
            "sender_info": {"user_info": {"platform": "qq", "user_id": "u1", "user_nickname": "Ann"}},
        },
        "message_segment": {"type": "text", "data": text},
        "chat_stream_id": "s1",
    }


async def http(
    edge: Process,
    method: str,
    path: str,
    body: object = None,
    *,
    content: bytes | None = None,
    **headers: str,
) -> tuple[int, Any]:
    """Send an HTTP request to the edge; return status and JSON body."""
    if body is not None:
        content = json.dumps(body).encode()
    if content is not None:
        headers = {"content-type": "application/json"} | headers
    async with httpx.AsyncClient(timeout=TIMEOUT_S) as client:
        url = f"http://{edge.address}{path}"
        response = await client.request(method, url, content=content, headers=headers)
    return response.status_code, response.json()


async def broadcast(edge: Process, place: str, body: object, query: str = "", **headers: str) -> Any:
    """Broadcast to `tenant/platform` or `tenant/agent/platform`; return the body of the 200 response."""
    tenant, *agent, platform = place.split("/")
    within = f"agents/{agent[0]}/" if agent else ""
    path = f"/api/v1/tenants/{tenant}/{within}platforms/{platform}/broadcast{query}"
    status, answer = await http(edge, "POST", path, body, **headers)
    assert status == 200, answer
    return answer
