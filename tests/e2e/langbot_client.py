"""LangBot's WebSocket chat and REST calls on the wire, and workers that answer them."""

from __future__ import annotations

import asyncio
import json
import socket
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import quote

import httpx
from trunkline_client import Worker, text_of
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from tests.e2e.fleet import Fleet, fleet_of
from tests.support.patience import patient

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator, Sequence
    from pathlib import Path

    from trunkline_client import Handler, Message

    from tests.support.processes import Process

WAIT_S = patient(15)
TENANT = "acme"

Frame = dict[str, Any]


def pipeline_path(pipeline: str, rest: str) -> str:
    """Return a LangBot path below `/ws` of a pipeline."""
    return f"/api/v1/pipelines/{quote(pipeline, safe='')}/ws/{rest}"


def plain(text: str) -> list[Frame]:
    """Return a message chain of one text."""
    return [{"type": "Plain", "text": text}]


class ChatClient:
    """Client of LangBot's WebSocket chat; received frames are kept in `frames`."""

    def __init__(
        self,
        edge: Process,
        pipeline: str,
        session_type: str = "",
        *,
        query: str = "",
        headers: dict[str, str] | None = None,
        first: Frame | None = None,
        small_buffers: bool = False,
    ) -> None:
        asked = "&".join(filter(None, [f"session_type={session_type}" if session_type else "", query]))
        path = pipeline_path(pipeline, "connect") + (f"?{asked}" if asked else "")
        self._url = f"ws://{edge.address}{path}"
        self._address = edge.address.rsplit(":", 1)
        self._headers = headers
        self._first = first
        self._narrow = small_buffers
        self.frames: list[Frame] = []
        self.connected: Frame = {}
        self.ws: ClientConnection

    @property
    def id(self) -> str:
        """Connection id."""
        return str(self.connected["connection_id"])

    async def dial(self) -> Self:
        """Open the WebSocket without waiting for a frame."""
        options: dict[str, Any] = {}
        if self._narrow:
            options["sock"] = sock = socket.socket()
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            sock.connect((self._address[0], int(self._address[1])))
        self.ws = await connect(
            self._url,
            compression=None,
            max_size=None,
            additional_headers=self._headers,
            close_timeout=1,
            **options,
        )
        if self._first is not None:
            await self.send(self._first)
        return self

    async def __aenter__(self) -> Self:
        await self.dial()
        self.connected = await self.frame()
        assert self.connected["type"] == "connected", self.connected
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self.ws.close()

    async def send(self, frame: Any) -> None:
        """Send a frame; text and bytes are sent unchanged."""
        await self.ws.send(frame if isinstance(frame, (str, bytes)) else json.dumps(frame))

    async def say(self, text: str, **more: Any) -> None:
        """Send a text message."""
        await self.send({"type": "message", "message": plain(text), **more})

    async def frame(self) -> Frame:
        """Receive the next frame."""
        async with asyncio.timeout(WAIT_S):
            data = await self.ws.recv()
        assert isinstance(data, str), "LangBot's frames are text"
        frame: Frame = json.loads(data)
        self.frames.append(frame)
        return frame

    async def next(self, kind: str) -> Frame:
        """Receive frames up to the next one of this type."""
        while True:
            frame = await self.frame()
            if frame["type"] == kind:
                return frame

    async def wait_for_record(self, content: str) -> Frame:
        """Wait for the record with this content."""
        while True:
            frame = await self.frame()
            if frame.get("data", {}).get("content") == content:
                return dict(frame["data"])

    async def reply(self) -> list[Frame]:
        """Receive the records of the next reply, up to its last one."""
        records: list[Frame] = []
        while not records or not records[-1]["is_final"]:
            records.append((await self.next("response"))["data"])
        return records

    async def closed(self) -> tuple[list[Frame], int]:
        """Receive all frames until the connection ends; return them with the close code."""
        frames = []
        with suppress(ConnectionClosed):
            while True:
                frames.append(await self.frame())
        await self.ws.wait_closed()
        assert self.ws.close_code is not None
        return frames, self.ws.close_code

    def of_type(self, kind: str) -> list[Frame]:
        """Return the received frames of this type."""
        return [frame for frame in self.frames if frame["type"] == kind]


class RestClient:
    """LangBot's REST calls for one pipeline."""

    def __init__(self, edge: Process, pipeline: str, headers: dict[str, str] | None = None) -> None:
        self._base = f"http://{edge.address}"
        self._pipeline = pipeline
        self._headers = headers

    async def call(self, method: str, rest: str, **options: Any) -> tuple[int, Frame]:
        """Send a request; return status and body."""
        async with httpx.AsyncClient(timeout=WAIT_S, headers=self._headers) as http:
            path = pipeline_path(self._pipeline, rest)
            answer = await http.request(method, self._base + path, **options)
            return answer.status_code, answer.json()

    async def ok(self, method: str, rest: str, **options: Any) -> Frame:
        """Send a request that must succeed; return `data` of its response."""
        status, body = await self.call(method, rest, **options)
        assert (status, body["code"], body["msg"], set(body)) == (200, 0, "ok", {"code", "msg", "data"}), body
        return dict(body["data"])

    async def messages(self, session_type: str = "person") -> list[Frame]:
        """Return the records of a session."""
        return list((await self.ok("GET", f"messages/{session_type}"))["messages"])

    async def reset(self, session_type: str = "person") -> Frame:
        """Reset a session."""
        return await self.ok("POST", f"reset/{session_type}")

    async def connections(self) -> Frame:
        """Return statistics and connections."""
        return await self.ok("GET", "connections")


@asynccontextmanager
async def pipeline_worker(
    router: Process,
    pipelines: Sequence[str],
    make: Callable[[Worker], Handler],
    tenant: str = TENANT,
    **options: Any,
) -> AsyncIterator[Worker]:
    """Run a worker for pipelines in this process; `make` creates its handler."""
    attached = asyncio.Event()
    worker = Worker(
        router.address, tenant=tenant, agents=pipelines, on_attached=lambda _: attached.set(), **options
    )
    running = asyncio.create_task(worker.run(make(worker)))
    try:
        async with asyncio.timeout(WAIT_S):
            await attached.wait()
        yield worker
    finally:
        running.cancel()
        await asyncio.wait([running])


class EdgeFleet:
    """Fleet whose edges tests start with different settings."""

    def __init__(self, fleet: Fleet) -> None:
        self.fleet = fleet
        #: Edge with default settings.
        self.plain = self.start()

    @property
    def router(self) -> Process:
        """Router of the fleet."""
        return self.fleet.router

    def start(self, **env: str) -> Process:
        """Start an edge."""
        return self.fleet.start_edge(**env)


@contextmanager
def edges_of(folder: Path, tenants: str, **env: str) -> Iterator[EdgeFleet]:
    """Run a router with a tenants file and an environment, and an edge."""
    file = folder / "tenants.toml"
    file.write_text(tenants)
    env = {"TRUNKLINE_TENANTS": "", "TRUNKLINE_TENANTS_FILE": str(file)} | env
    with fleet_of(folder / "data", edges=0, **env) as fleet:
        yield EdgeFleet(fleet)


def echo_handler(_: Worker) -> Handler:
    """Reply with the text of the message."""
    return lambda message: f"re: {text_of(message)}"


def streaming_handler(*gates: asyncio.Event) -> Any:
    """Stream the text of the message word by word; wait for all gates after the third word."""

    def make(worker: Worker) -> Handler:
        async def answer(message: Message) -> None:
            async with worker.reply(message) as out:
                for number, word in enumerate(text_of(message).split()):
                    if number == 3:
                        for gate in gates:
                            await gate.wait()
                    await out.write(f"{word} ")

        return answer

    return make
