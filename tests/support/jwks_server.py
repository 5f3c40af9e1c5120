"""Local HTTP server with scripted responses."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from tests.support.patience import patient

PATIENCE_S = patient(10)


class JwksServer:
    """Sends the raw bytes of `answer` to each request; if `hangs`, keeps the connection open afterwards.

    If a `gate` is set, responses wait until it opens.
    """

    def __init__(self) -> None:
        self.answer = b""
        self.hangs = False
        self.gate: asyncio.Event | None = None
        #: Request heads received so far.
        self.requests: list[str] = []
        self.port = 0

    def url(self, path: str = "/keys") -> str:
        return f"http://127.0.0.1:{self.port}{path}"

    def says(self, body: bytes, status: str = "200 OK", headers: str = "") -> None:
        """Set the response to further requests."""
        head = f"HTTP/1.1 {status}\r\ncontent-length: {len(body)}\r\nconnection: close\r\n{headers}\r\n"
        self.answer = head.encode() + body

    async def take(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Handle one connection."""
        try:
            self.requests.append((await reader.readuntil(b"\r\n\r\n")).decode())
            if self.gate is not None:
                await self.gate.wait()
            writer.write(self.answer)
            await writer.drain()
            if self.hangs:
                await reader.read()
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            # The client has disconnected, or the test is over.
            pass
        finally:
            writer.close()


@asynccontextmanager
async def running_jwks_server() -> AsyncIterator[JwksServer]:
    """Run a server on a free port of this machine."""
    jwks = JwksServer()
    server = await asyncio.start_server(jwks.take, "127.0.0.1", 0)
    jwks.port = server.sockets[0].getsockname()[1]
    try:
        yield jwks
    finally:
        server.close()
