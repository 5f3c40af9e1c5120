"""An edge that sends the frames a test chooses, and time that a test controls."""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from itertools import count
from typing import Any
from urllib.parse import parse_qs, urlsplit

from trunkline.v1.address_pb2 import Address, Position, TopicPosition
from trunkline.v1.frame_pb2 import AckFrame, ClientFrame, ConnectedFrame, ConnectionLimits, ServerFrame
from trunkline.v1.message_pb2 import ROLE_AGENT, Author, Message, Part, TextPart
from trunkline_client import Client, ClientSettings, Clock, address
from websockets.asyncio.server import Server, ServerConnection, serve
from websockets.exceptions import ConnectionClosed

ALICE = address(tenant="demo", agent="echo", platform="web", conversation="person:alice")
TEAM = address(tenant="demo", agent="echo", platform="web", conversation="group:team")


#: Wall clock time, in seconds since 1970, at FakeTime 0.
EPOCH_S = 1_700_000_000


async def eventually(condition: Callable[[], object]) -> None:
    """Runs other tasks until the condition holds; fails if it never does."""
    for _ in range(100_000):
        if condition():
            return
        await asyncio.sleep(0)
    raise AssertionError("the condition never held")


class FakeTime:
    """Time that stands still until `advance`; `waits` records the requested sleeps in seconds."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.jitter = 0.0
        self.waits: list[float] = []
        self._sleepers: list[tuple[float, int, asyncio.Future[None]]] = []
        self._numbers = count()
        self._asleep = asyncio.Event()

    @property
    def clock(self) -> Clock:
        """A clock for the code under test; its random numbers are `jitter`, 0 by default."""
        return Clock(
            monotonic=lambda: self.now,
            sleep=self.sleep,
            now_s=lambda: EPOCH_S + self.now,
            random=lambda: self.jitter,
        )

    async def sleep(self, seconds: float) -> None:
        """Sleeps until `advance` has passed this time."""
        self.waits.append(seconds)
        if seconds <= 0:
            # A loop that retries without any pause would leave gRPC no time to connect.
            await asyncio.sleep(0.01)
            return
        waker: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        sleeper = (self.now + seconds, next(self._numbers), waker)
        heapq.heappush(self._sleepers, sleeper)
        self._asleep.set()
        try:
            await waker
        finally:
            if sleeper in self._sleepers:
                self._sleepers.remove(sleeper)
                heapq.heapify(self._sleepers)

    async def wait_for_sleeper(self) -> float:
        """Waits until a task sleeps; returns the seconds until the first one wakes."""
        while not self._sleepers:
            self._asleep.clear()
            await self._asleep.wait()
        return self._sleepers[0][0] - self.now

    async def wait_for_sleep(self, seconds: float) -> None:
        """Waits until a task sleeps for this long."""
        while all(due != self.now + seconds for due, _, _ in self._sleepers):
            self._asleep.clear()
            await self._asleep.wait()

    def advance(self, seconds: float) -> None:
        """Advances time and wakes the tasks that are due."""
        self.now += seconds
        while self._sleepers and self._sleepers[0][0] <= self.now:
            waker = heapq.heappop(self._sleepers)[2]
            if not waker.done():
                waker.set_result(None)


class EdgeSide:
    """The edge's end of one connection."""

    def __init__(self, socket: ServerConnection) -> None:
        self.socket = socket
        assert socket.request is not None
        self.path = socket.request.path
        self.query = {name: values[0] for name, values in parse_qs(urlsplit(self.path).query).items()}
        self.token = socket.request.headers.get("Authorization", "").removeprefix("Bearer ")
        self.over = asyncio.Event()

    async def read(self) -> ClientFrame:
        """Reads the client's next frame."""
        data = await self.socket.recv(decode=False)
        return ClientFrame.FromString(data)

    async def send(self, **frame: Any) -> None:
        """Sends a frame, such as `ack=AckFrame(…)`."""
        await self.socket.send(ServerFrame(**frame).SerializeToString())

    async def welcome(self, seq: int = 0, *, recovered: bool = False, **more: Any) -> None:
        """Sends `connected` with `seq` as the conversation's position."""
        frame = ConnectedFrame(
            connection_id="c1",
            address=ALICE,
            user="alice",
            positions=[TopicPosition(address=ALICE, position=at(seq))],
            recovered=recovered,
            heartbeat_s=20,
            limits=ConnectionLimits(frame_bytes=1 << 20, conversations=10, unanswered=10),
        )
        frame.MergeFrom(ConnectedFrame(**more))
        await self.send(connected=frame)

    async def ack(self, request_id: str, seq: int) -> None:
        """Acknowledges a message."""
        ack = AckFrame(id=request_id, message_id=f"m{seq}", position=at(seq), address=ALICE)
        await self.send(ack=ack)

    async def close(self, code: int) -> None:
        """Closes the WebSocket with a code."""
        await self.socket.close(code)

    def abort(self) -> None:
        """Aborts the TCP connection."""
        self.socket.transport.abort()


class ScriptedEdge:
    """Accepts connections and leaves the rest to the test."""

    def __init__(self) -> None:
        self._connections: asyncio.Queue[EdgeSide] = asyncio.Queue()
        self._sides: list[EdgeSide] = []
        self.server: Server | None = None

    @property
    def url(self) -> str:
        """The URL to connect to."""
        assert self.server is not None
        return f"ws://127.0.0.1:{next(iter(self.server.sockets)).getsockname()[1]}"

    async def accept(self) -> EdgeSide:
        """Waits for the next connection."""
        return await self._connections.get()

    async def handle(self, socket: ServerConnection) -> None:
        """Keeps a connection open until the client leaves or the test ends."""
        side = EdgeSide(socket)
        self._sides.append(side)
        self._connections.put_nowait(side)
        try:
            await side.over.wait()
        except ConnectionClosed:
            return

    def end(self) -> None:
        """Lets all connections end."""
        for side in self._sides:
            side.over.set()

    def client(self, time: FakeTime | None = None, **options: Any) -> Client:
        """A client of this edge, with fake time."""
        return Client(
            options.pop("url", None) or self.url,
            tenant="demo",
            agent="echo",
            platform="web",
            conversation="person:alice",
            user="alice",
            clock=(time or FakeTime()).clock,
            settings=options.pop("settings", ClientSettings()),
            **options,
        )


@asynccontextmanager
async def scripted_edge(**options: Any) -> AsyncIterator[ScriptedEdge]:
    """An edge on a free port."""
    edge = ScriptedEdge()
    async with serve(
        edge.handle,
        "127.0.0.1",
        0,
        subprotocols=["trunkline.v1.proto"],  # type: ignore[list-item]
        compression=None,
        ping_interval=None,
        close_timeout=1,
        **options,
    ) as edge.server:
        yield edge
        edge.end()
        edge.server.close()


@asynccontextmanager
async def connected(
    edge: ScriptedEdge, client: Client, seq: int = 0, **welcome: Any
) -> AsyncIterator[tuple[Client, EdgeSide]]:
    """A connected client and the edge's side of it; closes the client without a closing handshake."""
    opening = asyncio.create_task(client.open())
    side = await edge.accept()
    await side.welcome(seq, **welcome)
    await opening
    try:
        yield client, side
    finally:
        edge.end()
        await client.close()


def at(seq: int, epoch: str = "e1") -> Position:
    """A position; that of an empty log has no epoch."""
    return Position(epoch=epoch if seq else "", seq=seq)


def message(seq: int, text: str = "", *, to: Address = ALICE, epoch: str = "e1", **more: Any) -> Message:
    """A message from the agent."""
    author = more.pop("author", Author(role=ROLE_AGENT))
    return Message(
        id=f"m{seq}",
        address=to,
        position=Position(epoch=epoch, seq=seq),
        author=author,
        parts=[Part(text=TextPart(text=text or f"text {seq}"))],
        **more,
    )
