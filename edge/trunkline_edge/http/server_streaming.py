"""Server-streaming RPCs as server-sent events: WatchConnections and its like.

Each message is an event named after the RPC in snake case, such as `watch_connections`. If the call fails
after the response has begun, the last event is `error`, and its data is a google.rpc.Status.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import suppress

from google.protobuf.message import Message
from starlette.types import Receive, Scope, Send

from trunkline_edge.http.bindings import Binding
from trunkline_edge.http.error_responses import failure_response
from trunkline_edge.http.protocol import CLIENT_ENDED
from trunkline_edge.http.router_client import CallFailed

#: Time to wait for the first message or a refusal, which still can be a status. Both take milliseconds.
FIRST_WAIT_S = 1.0

#: After this long without a message a comment is sent, so that proxies keep the connection.
HEARTBEAT_S = 20.0

HEADERS = [
    (b"content-type", b"text/event-stream"),
    (b"cache-control", b"no-store"),
    (b"x-accel-buffering", b"no"),
]

#: Encodes a message as an event's data.
EncodeEvent = Callable[[Message], Awaitable[bytes]]


class EventStream:
    """The response to one server-streaming call, as an ASGI app; made by `open`."""

    def __init__(self, binding: Binding, encode: EncodeEvent, messages: AsyncGenerator[Message]) -> None:
        rpc = re.sub(r"(?<!^)(?=[A-Z])", "_", binding.method.name).lower()
        self._event = rpc.encode()
        self._encode = encode
        self._messages = messages
        self._pending: asyncio.Future[Message] | None = None

    @classmethod
    async def open(
        cls, binding: Binding, encode: EncodeEvent, messages: AsyncGenerator[Message]
    ) -> EventStream:
        """Make the call. Raises CallFailed if it is refused within FIRST_WAIT_S."""
        stream = cls(binding, encode, messages)
        try:
            done, _ = await asyncio.wait({stream._next()}, timeout=FIRST_WAIT_S)
            for pending in done:
                if isinstance(failed := pending.exception(), CallFailed):
                    raise failed
        except BaseException:
            await stream.close()
            raise
        return stream

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Write the response until it ends or the client disconnects, and end the call."""
        try:
            await _write_until_disconnect(self, scope["state"][CLIENT_ENDED], receive, send)
        finally:
            await self.close()

    async def write(self, send: Send) -> None:
        """Write the response up to its end."""
        await send({"type": "http.response.start", "status": 200, "headers": HEADERS})
        # Uvicorn holds the head back until the body begins.
        await _write(send, b": watching\n\n")
        number = 0
        try:
            while True:
                done, _ = await asyncio.wait({self._next()}, timeout=HEARTBEAT_S)
                if not done:
                    await _write(send, b": ping\n\n")
                    continue
                message = self._take()
                number += 1
                await _write(
                    send, b"event: %b\nid: %d\n" % (self._event, number), await self._encode(message)
                )
        except StopAsyncIteration:
            pass
        except CallFailed as failed:
            await _write(send, b"event: error\n", bytes(failure_response(failed).body))
        await send({"type": "http.response.body", "body": b""})

    async def close(self) -> None:
        """End the call."""
        if self._pending is not None:
            self._pending.cancel()
            with suppress(asyncio.CancelledError, CallFailed, StopAsyncIteration):
                await self._pending
        await self._messages.aclose()

    def _next(self) -> asyncio.Future[Message]:
        if self._pending is None:
            self._pending = asyncio.ensure_future(anext(self._messages))
        return self._pending

    def _take(self) -> Message:
        assert self._pending is not None
        pending, self._pending = self._pending, None
        return pending.result()


async def _write(send: Send, lines: bytes, data: bytes = b"") -> None:
    """Write the lines of an event and its data, which contains no line breaks."""
    body = lines + b"data: " + data + b"\n\n" if data else lines
    await send({"type": "http.response.body", "body": body, "more_body": True})


async def _write_until_disconnect(
    stream: EventStream, client_ended: asyncio.Event, receive: Receive, send: Send
) -> None:
    """Write until the client disconnects, or ends its side: it sends nothing while it listens."""
    calls = (stream.write(send), _disconnect(receive), client_ended.wait())
    tasks = [asyncio.ensure_future(call) for call in calls]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        results = await asyncio.gather(*tasks, return_exceptions=True)
    for result in results:
        if isinstance(result, Exception):
            raise result


async def _disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
