"""Connections of all dialects that keep received frames as raw bytes."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any, Self

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from tests.e2e.polling import WAIT_S

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.support.processes import Process

#: Frames that arrive at any time.
_HEARTBEATS = (b'"heartbeat"', b": ping")


class RawConnection:
    """WebSocket. `name` is that of its dialect."""

    def __init__(self, name: str, edge: Process, path: str, **options: Any) -> None:
        self.name = name
        self.url = f"ws://{edge.address}{path}"
        self.options = options
        #: Received frames, without heartbeats.
        self.frames: list[bytes] = []
        self.is_closed = False
        #: HTTP status if the handshake was rejected, else 0.
        self.status = 0
        self._came = asyncio.Event()
        self._ws: ClientConnection | None = None
        self._reader: asyncio.Task[None] | None = None

    async def open(self, first: str | bytes = b"") -> Self:
        """Connect, send the first frame if there is one, and wait for a frame or the end."""
        self.frames, self.is_closed, self.status = [], False, 0
        if self.name == "maim.socket_io":
            first = "40"
        try:
            await self._dial()
            if first:
                await self.send(first)
        except InvalidStatus as refused:
            self.status, self.is_closed = refused.response.status_code, True
            self.frames.append(bytes(refused.response.body or b""))
            return self
        # In some dialects the handshake response, sent once the router has accepted, is the only answer.
        answers = {"maim.api": 0, "maim.api router": 0, "maim.socket_io": 2}.get(self.name, 1)
        await self._until(lambda: len(self.frames) >= answers or self.is_closed, "an answer")
        return self

    async def _dial(self) -> None:
        self._ws = await connect(
            self.url, compression=None, ping_interval=None, max_size=None, open_timeout=WAIT_S, **self.options
        )
        self._reader = asyncio.create_task(self._read())

    async def _read(self) -> None:
        assert self._ws is not None
        with contextlib.suppress(ConnectionClosed):
            while True:
                frame = await self._ws.recv()
                self.take(frame.encode() if isinstance(frame, str) else frame)
        self._end()

    def take(self, frame: bytes) -> None:
        """Keep a frame unless it is a heartbeat."""
        if frame == b"2" and self._ws is not None:
            # Engine.IO's, which must be answered.
            self._pong = asyncio.ensure_future(self._ws.send("3"))
        elif frame and not any(beat in frame for beat in _HEARTBEATS):
            self.frames.append(frame)
            self._came.set()

    def _end(self) -> None:
        self.is_closed = True
        self._came.set()

    async def send(self, frame: str | bytes) -> None:
        """Send a frame."""
        assert self._ws is not None
        await self._ws.send(frame)

    async def wait_for(self, mark: str) -> None:
        """Wait for a frame that contains `mark`; it may have arrived already."""
        sought = mark.encode()
        await self._until(lambda: any(sought in frame for frame in self.frames) or self.is_closed, mark)
        assert any(sought in frame for frame in self.frames), f"{self.name} ended before it received {mark}"

    async def wait_closed(self) -> None:
        """Wait for the end of the connection."""
        await self._until(lambda: self.is_closed, "its end")

    async def _until(self, condition: Callable[[], bool], what: str) -> None:
        try:
            async with asyncio.timeout(WAIT_S):
                while not condition():
                    self._came.clear()
                    await self._came.wait()
        except TimeoutError:
            raise AssertionError(
                f"{self.name} waits for {what}; it has received {self.frames[-3:]}"
            ) from None

    async def close(self) -> None:
        """Close the connection."""
        if self._ws is not None and self._reader is not None:
            await self._ws.close()
            await self._reader
            self._ws = self._reader = None


class RawEventStream(RawConnection):
    """Event stream."""

    def __init__(self, name: str, edge: Process, path: str) -> None:
        super().__init__(name, edge, path)
        self._address = edge.address
        self._path = path
        self._writer: asyncio.StreamWriter | None = None

    async def _dial(self) -> None:
        host, _, port = self._address.rpartition(":")
        reader, self._writer = await asyncio.open_connection(host, int(port))
        self._writer.write(f"GET {self._path} HTTP/1.1\r\nHost: {self._address}\r\n\r\n".encode())
        self._reader = asyncio.create_task(self._read_events(reader))

    async def _read_events(self, reader: asyncio.StreamReader) -> None:
        with contextlib.suppress(OSError, EOFError):
            head = await reader.readuntil(b"\r\n\r\n")
            status = int(head.split()[1])
            self.status = 0 if status == 200 else status
            if self.status:
                self.frames.append(await reader.read())
            while not self.status:
                self.take((await reader.readuntil(b"\n\n")).removesuffix(b"\n\n"))
        self._end()

    async def close(self) -> None:
        """See RawConnection."""
        if self._writer is not None and self._reader is not None:
            self._writer.close()
            await self._reader
            self._writer = self._reader = None
