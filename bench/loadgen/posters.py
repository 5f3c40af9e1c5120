"""Load generator: a backend that posts messages to an HTTP API over a fixed number of connections."""

import asyncio
import functools
import json
import sys
import time
from typing import cast

import uvloop

from bench.commands import Result, emit, serve_commands
from bench.loadgen.chat_text import chat_text
from bench.loadgen.latency import Latencies
from bench.loadgen.websocket_frames import HEAD_END


class Poster(asyncio.Protocol):
    """Connection that posts the next message as soon as the last one is answered."""

    def __init__(self, latencies: Latencies, end_ns: int) -> None:
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._latencies, self._end_ns = latencies, end_ns
        self._transport: asyncio.WriteTransport | None = None
        self._received, self._posted_ns, self._number = b"", 0, 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Post the first message."""
        self._transport = cast("asyncio.WriteTransport", transport)  # uvloop's transport is no subclass
        self._post()

    def data_received(self, data: bytes) -> None:
        """Handle a response and post the next message unless the time is over."""
        self._received += data
        head, found, body = self._received.partition(HEAD_END)
        size = int(head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0]) if found else 0
        if not found or len(body) < size:
            return
        if not head.startswith(b"HTTP/1.1 200"):
            raise RuntimeError(f"rejected: {head!r}")
        self._received = b""
        self._latencies.add_ns(time.monotonic_ns() - self._posted_ns)
        if time.monotonic_ns() < self._end_ns:
            self._post()
        else:
            self.done.set_result(None)

    def _post(self) -> None:
        self._posted_ns = time.monotonic_ns()
        text = chat_text(self._number, self._posted_ns)
        body = json.dumps({"conversation": f"person:{self._number % 100}", "text": text}).encode()
        head = "POST /messages HTTP/1.1\r\nHost: bench\r\nContent-Type: application/json\r\nContent-Length: "
        self._number += 1
        assert self._transport
        self._transport.write(head.encode() + str(len(body)).encode() + HEAD_END + body)


async def post(port: int, seconds: float, at_a_time: int) -> Result:
    """Post for `seconds` over `at_a_time` connections."""
    latencies, loop, began = Latencies(), asyncio.get_running_loop(), time.monotonic()
    end_ns = time.monotonic_ns() + int(seconds * 1e9)
    opened = [
        await loop.create_connection(lambda: Poster(latencies, end_ns), "127.0.0.1", port)
        for _ in range(at_a_time)
    ]
    await asyncio.gather(*(poster.done for _, poster in opened))
    elapsed_s = time.monotonic() - began
    for transport, _ in opened:
        transport.close()
    figures = latencies.figures()
    return {"accepted": figures["samples"], "elapsed_s": elapsed_s, "latency": figures}


async def main(port: int) -> None:
    """Serve the command `post`."""
    emit(ready=True)
    await serve_commands({"post": functools.partial(post, port)})


if __name__ == "__main__":
    uvloop.run(main(int(sys.argv[1])))
