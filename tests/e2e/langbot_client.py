"""Clients, agents and HTTP calls of LangBot for tests, on the bare wire."""

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
    """A path of LangBot's, below /ws of a pipeline."""
    return f"/api/v1/pipelines/{quote(pipeline, safe='')}/ws/{rest}"


def plain(text: str) -> list[Frame]:
    """A chain of one text."""
    return [{"type": "Plain", "text": text}]


class ChatClient:
    """One client of LangBot's WebSocket chat; all frames are kept in `frames`."""

    def __init__(
        self,
        edge: Process,
        pipeline: str,
        session_type: str = "",
        *,
        query: str = "",
        headers: dict[str, str] | None = None,
        first: Frame | None = None,
        narrow: bool = False,
    ) -> None:
        asked = "&".join(filter(None, [f"session_type={session_type}" if session_type else "", query]))
        path = pipeline_path(pipeline, "connect") + (f"?{asked}" if asked else "")
        self._url = f"ws://{edge.address}{path}"
        self._address = edge.address.rsplit(":", 1)
        self._headers = headers
        self._first = first
        self._narrow = narrow
        self.frames: list[Frame] = []
        self.connected: Frame = {}
        self.ws: ClientConnection

    @property
    def id(self) -> str:
        """Its connection id."""
        return str(self.connected["connection_id"])

    async def dial(self) -> Self:
        """Open the WebSocket, whatever is said then."""
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
        """Send a frame, or text or bytes as they are."""
        await self.ws.send(frame if isinstance(frame, (str, bytes)) else json.dumps(frame))

    async def say(self, text: str, **more: Any) -> None:
        """Say a text."""
        await self.send({"type": "message", "message": plain(text), **more})

    async def frame(self) -> Frame:
        """The next frame."""
        async with asyncio.timeout(WAIT_S):
            data = await self.ws.recv()
        assert isinstance(data, str), "LangBot's frames are text"
        frame: Frame = json.loads(data)
        self.frames.append(frame)
        return frame

    async def next(self, kind: str) -> Frame:
        """The next frame of this type."""
        while True:
            frame = await self.frame()
            if frame["type"] == kind:
                return frame

    async def heard(self, content: str) -> Frame:
        """The record of this content, when it comes."""
        while True:
            frame = await self.frame()
            if frame.get("data", {}).get("content") == content:
                return dict(frame["data"])

    async def reply(self) -> list[Frame]:
        """The records of the next reply, up to its last one."""
        records: list[Frame] = []
        while not records or not records[-1]["is_final"]:
            records.append((await self.next("response"))["data"])
        return records

    async def closed(self) -> tuple[list[Frame], int]:
        """All frames up to the end of the connection, and the close code."""
        frames = []
        with suppress(ConnectionClosed):
            while True:
                frames.append(await self.frame())
        await self.ws.wait_closed()
        assert self.ws.close_code is not None
        return frames, self.ws.close_code

    def told(self, kind: str) -> list[Frame]:
        """Frames of this type so far."""
        return [frame for frame in self.frames if frame["type"] == kind]


class RestClient:
    """HTTP calls for one pipeline."""

    def __init__(self, edge: Process, pipeline: str, headers: dict[str, str] | None = None) -> None:
        self._base = f"http://{edge.address}"
        self._pipeline = pipeline
        self._headers = headers

    async def call(self, method: str, rest: str, **options: Any) -> tuple[int, Frame]:
        """Status and body of an answer."""
        async with httpx.AsyncClient(timeout=WAIT_S, headers=self._headers) as http:
            path = pipeline_path(self._pipeline, rest)
            answer = await http.request(method, self._base + path, **options)
            return answer.status_code, answer.json()

    async def ok(self, method: str, rest: str, **options: Any) -> Frame:
        """What is in `data` of an answer of success."""
        status, body = await self.call(method, rest, **options)
        assert (status, body["code"], body["msg"], set(body)) == (200, 0, "ok", {"code", "msg", "data"}), body
        return dict(body["data"])

    async def messages(self, session_type: str = "person") -> list[Frame]:
        """The records of a session."""
        return list((await self.ok("GET", f"messages/{session_type}"))["messages"])

    async def reset(self, session_type: str = "person") -> Frame:
        """Reset a session."""
        return await self.ok("POST", f"reset/{session_type}")

    async def connections(self) -> Frame:
        """Statistics and connections."""
        return await self.ok("GET", "connections")


@asynccontextmanager
async def pipeline_worker(
    router: Process, pipelines: Sequence[str], make: Callable[[Worker], Handler], tenant: str = TENANT
) -> AsyncIterator[Worker]:
    """A worker in this process that answers for pipelines; `make` makes its handler."""
    attached = asyncio.Event()
    worker = Worker(router.address, tenant=tenant, agents=pipelines, on_attached=lambda _: attached.set())
    running = asyncio.create_task(worker.run(make(worker)))
    try:
        async with asyncio.timeout(WAIT_S):
            await attached.wait()
        yield worker
    finally:
        running.cancel()
        await asyncio.wait([running])


class EdgeFleet:
    """The edges of one fleet."""

    def __init__(self, fleet: Fleet) -> None:
        self.fleet = fleet
        #: With no setting changed.
        self.plain = self.start()

    @property
    def router(self) -> Process:
        """The router."""
        return self.fleet.router

    def start(self, **env: str) -> Process:
        """One more edge."""
        return self.fleet.start_edge(**env)


@contextmanager
def edges_of(folder: Path, tenants: str) -> Iterator[EdgeFleet]:
    """A router with the tenants of a tenants file, and an edge."""
    file = folder / "tenants.toml"
    file.write_text(tenants)
    with fleet_of(folder / "data", edges=0, TRUNKLINE_TENANTS="", TRUNKLINE_TENANTS_FILE=str(file)) as fleet:
        yield EdgeFleet(fleet)


def echo_handler(_: Worker) -> Handler:
    """Says what it was told, at once."""
    return lambda message: f"re: {text_of(message)}"


def streaming_handler(*gates: asyncio.Event) -> Any:
    """Says word by word what it was told, waiting after the third word for each of the gates."""

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
