"""An edge whose every frame is said by the test, time that passes when the test says so."""

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


#: What the wall clock shows when FakeTime is 0.
EPOCH_S = 1_700_000_000


async def soon(condition: Callable[[], object]) -> None:
    """Lets everybody have their turns until this is so."""
    for _ in range(100_000):
        if condition():
            return
        await asyncio.sleep(0)
    raise AssertionError("it did not come about")


class FakeTime:
    """Time that stands still until `advance`; `waits` are the sleeps asked for, in seconds."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.jitter = 0.0
        self.waits: list[float] = []
        self._sleepers: list[tuple[float, int, asyncio.Future[None]]] = []
        self._numbers = count()
        self._asleep = asyncio.Event()

    @property
    def clock(self) -> Clock:
        """What to give to the code under test; its jitter is the least unless `jitter` says otherwise."""
        return Clock(
            monotonic=lambda: self.now,
            sleep=self.sleep,
            now_s=lambda: EPOCH_S + self.now,
            random=lambda: self.jitter,
        )

    async def sleep(self, seconds: float) -> None:
        """Waits for `advance`, unless there is nothing to wait for."""
        self.waits.append(seconds)
        if seconds <= 0:
            # Whoever tries again at once for ever leaves gRPC no time to connect.
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

    async def asleep(self) -> float:
        """Waits until somebody sleeps; returns how long until the first one wakes."""
        while not self._sleepers:
            self._asleep.clear()
            await self._asleep.wait()
        return self._sleepers[0][0] - self.now

    async def asleep_for(self, seconds: float) -> None:
        """Waits until somebody sleeps that long."""
        while all(due != self.now + seconds for due, _, _ in self._sleepers):
            self._asleep.clear()
            await self._asleep.wait()

    def advance(self, seconds: float) -> None:
        """Lets time pass."""
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
        """The next frame of the client."""
        data = await self.socket.recv(decode=False)
        return ClientFrame.FromString(data)

    async def say(self, **frame: Any) -> None:
        """Sends a frame, such as `ack=AckFrame(…)`."""
        await self.socket.send(ServerFrame(**frame).SerializeToString())

    async def welcome(self, seq: int = 0, *, recovered: bool = False, **more: Any) -> None:
        """Sends `connected`, standing at `seq` in the conversation's log."""
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
        await self.say(connected=frame)

    async def ack(self, request_id: str, seq: int) -> None:
        """Acknowledges a message."""
        ack = AckFrame(id=request_id, message_id=f"m{seq}", position=at(seq), address=ALICE)
        await self.say(ack=ack)

    async def close(self, code: int) -> None:
        """Closes the WebSocket with a code."""
        await self.socket.close(code)

    def break_off(self) -> None:
        """Ends the TCP connection without a word."""
        self.socket.transport.abort()


class ScriptedEdge:
    """Accepts connections and leaves the rest to the test."""

    def __init__(self) -> None:
        self._accepted: asyncio.Queue[EdgeSide] = asyncio.Queue()
        self._sides: list[EdgeSide] = []
        self.server: Server | None = None

    @property
    def url(self) -> str:
        """Where to connect."""
        assert self.server is not None
        return f"ws://127.0.0.1:{next(iter(self.server.sockets)).getsockname()[1]}"

    async def accepted(self) -> EdgeSide:
        """The next connection."""
        return await self._accepted.get()

    async def handle(self, socket: ServerConnection) -> None:
        """Holds a connection until the client goes or the test ends."""
        side = EdgeSide(socket)
        self._sides.append(side)
        self._accepted.put_nowait(side)
        try:
            await side.over.wait()
        except ConnectionClosed:
            return

    def end(self) -> None:
        """Lets all handlers return."""
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
    """A client that has been welcomed, and the edge's side; closes the client without ceremony."""
    opening = asyncio.create_task(client.open())
    side = await edge.accepted()
    await side.welcome(seq, **welcome)
    await opening
    try:
        yield client, side
    finally:
        edge.end()
        await client.close()


def at(seq: int, epoch: str = "e1") -> Position:
    """A position; the empty log's has no epoch."""
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
