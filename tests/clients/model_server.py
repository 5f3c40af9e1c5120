"""A server with the OpenAI API's chat completions, for example agents."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any


def event(**delta: Any) -> bytes:
    """One event of a stream."""
    return b"data: " + json.dumps({"choices": [{"index": 0, "delta": delta}]}).encode() + b"\n\n"


#: End of an answer.
DONE = [
    b'data: {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}\n\n',
    b"data: [DONE]\n\n",
]


class ModelServer:
    """An HTTP server on a real socket that answers each request with the bytes a test chooses."""

    def __init__(self) -> None:
        self.requests: list[dict[str, Any]] = []
        self.headers: list[str] = []
        self.status = "200 OK"
        #: Written one by one, each in a packet of its own.
        self.body: list[bytes] = []
        #: Bodies of the first requests, before all others get `body`.
        self.first: list[list[bytes]] = []
        #: Sends nothing at all, not even headers.
        self.is_silent = False
        #: Goes on without an end after the body.
        self.hangs = False
        #: A request has arrived.
        self.asked = asyncio.Event()
        #: The client has closed the connection of an answer that goes on.
        self.left = asyncio.Event()
        self.url = ""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answers one request."""
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        self.headers.append(head)
        length = next(
            int(line.split(":")[1]) for line in head.lower().split("\r\n") if "content-length" in line
        )
        self.requests.append(json.loads(await reader.readexactly(length)))
        self.asked.set()
        if self.is_silent:
            await reader.read()
            self.left.set()
            writer.close()
            return
        start = (
            f"HTTP/1.1 {self.status}\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
        )
        writer.write(start.encode())
        is_first = bool(self.first)
        body = self.first.pop(0) if is_first else self.body
        for piece in body:
            writer.write(f"{len(piece):x}\r\n".encode() + piece + b"\r\n")
            await writer.drain()
            await asyncio.sleep(0)
        if self.hangs and not is_first:
            await reader.read()
            self.left.set()
        elif body and body[-1] != b"":
            writer.write(b"0\r\n\r\n")
        writer.close()


@asynccontextmanager
async def model_server() -> AsyncIterator[ModelServer]:
    """A model's server on a free port."""
    model = ModelServer()
    server = await asyncio.start_server(model.serve, "127.0.0.1", 0)
    async with server:
        model.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1/"
        yield model
