"""Server-streaming RPCs as server-sent events: WatchConnections and its like.

Each message is an event named after the RPC in snake case, such as `watch_connections`. If the call fails
after the response has begun, the last event is `error`, and its data is a google.rpc.Status.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncGenerator
from contextlib import aclosing, suppress
from typing import cast

from google.protobuf.message import Message
from starlette.requests import Request
from starlette.routing import BaseRoute, Match
from starlette.types import Receive, Scope, Send
from trunkline.v1.catalogue import Refused

from trunkline_edge.http.bindings import Binding, bindings
from trunkline_edge.http.body_reader import BodyReader
from trunkline_edge.http.caller_metadata import CallerMetadata
from trunkline_edge.http.error_responses import failure_response
from trunkline_edge.http.json_encode import response_json
from trunkline_edge.http.path_router import PathRouter
from trunkline_edge.http.request import request_message
from trunkline_edge.http.router_client import CallFailed, RouterClient
from trunkline_edge.http.transcoding import LARGE_BYTES

#: Time to wait for the first message or a refusal, which still can be a status. Both take milliseconds.
FIRST_WAIT_S = 1.0

#: After this long without a message a comment is sent, so that proxies keep the connection.
HEARTBEAT_S = 20.0

HEADERS = [
    (b"content-type", b"text/event-stream"),
    (b"cache-control", b"no-store"),
    (b"x-accel-buffering", b"no"),
]


def routes(calls: RouterClient, access: CallerMetadata) -> list[BaseRoute]:
    """The route of all server-streaming RPCs bound to GET. Mount it before the transcoder."""
    return [ServerStreamingRoute(calls, access)]


class ServerStreamingRoute(BaseRoute):
    """Answers GET requests bound to server-streaming RPCs."""

    def __init__(self, calls: RouterClient, access: CallerMetadata) -> None:
        self._calls = calls
        self._access = access
        self._bodies = BodyReader()
        self._router: PathRouter[Binding] = PathRouter()
        for binding in bindings():
            if binding.method.server_streaming and binding.http_method == "GET":
                self._router.add(binding.http_method, binding.pattern, binding)

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        """See BaseRoute."""
        if scope["type"] != "http" or scope["method"] != "GET":
            return Match.NONE, {}
        try:
            match = self._router.find(scope["raw_path"].decode("latin-1"))
        except UnicodeDecodeError:
            return Match.NONE, {}
        if match is None:
            return Match.NONE, {}
        return Match.FULL, {"call": (match.methods["GET"], match.values)}

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See BaseRoute."""
        request = Request(scope, receive)
        binding, values = scope["call"]
        try:
            stream = await self._call(request, binding, values)
        except Refused as reason:
            await failure_response(reason)(scope, receive, send)
            return
        async with aclosing(stream):
            response = StreamResponse(binding, stream)
            try:
                await response.start()
                await _write_until_disconnect(response, request, send)
            except CallFailed as failed:
                await failure_response(failed)(scope, receive, send)
            finally:
                await response.close()

    async def _call(
        self, request: Request, binding: Binding, values: tuple[str, ...]
    ) -> AsyncGenerator[Message]:
        """The messages of the response; the first iteration makes the call. Raises Refused."""
        metadata = self._access.metadata(request, binding.tenant_in(values), binding.scope)
        async with self._bodies.json(request, expected=False):
            message = request_message(binding, values, request.scope["query_string"], b"")
        stream = self._calls.stream(binding.method, message, metadata=metadata)
        return cast("AsyncGenerator[Message]", stream)


class StreamResponse:
    """One response: `start`, then `write` unless that raised, and `close` in any case."""

    def __init__(self, binding: Binding, stream: AsyncGenerator[Message]) -> None:
        rpc = re.sub(r"(?<!^)(?=[A-Z])", "_", binding.method.name).lower()
        self._event = rpc.encode()
        self._binding = binding
        self._stream = stream
        self._pending: asyncio.Future[Message] | None = None

    async def start(self) -> None:
        """Make the call. Raises CallFailed if it is refused within FIRST_WAIT_S."""
        done, _ = await asyncio.wait({self._next()}, timeout=FIRST_WAIT_S)
        for pending in done:
            if isinstance(failed := pending.exception(), CallFailed):
                raise failed

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
                await _write(send, b"event: %b\nid: %d\n" % (self._event, number), await self._json(message))
        except StopAsyncIteration:
            pass
        except CallFailed as failed:
            await _write(send, b"event: error\n", bytes(failure_response(failed).body))
        await send({"type": "http.response.body", "body": b""})

    async def close(self) -> None:
        """Cancel the pending read of the call."""
        if self._pending is not None:
            self._pending.cancel()
            with suppress(asyncio.CancelledError, CallFailed, StopAsyncIteration):
                await self._pending

    def _next(self) -> asyncio.Future[Message]:
        if self._pending is None:
            self._pending = asyncio.ensure_future(anext(self._stream))
        return self._pending

    def _take(self) -> Message:
        assert self._pending is not None
        pending, self._pending = self._pending, None
        return pending.result()

    async def _json(self, message: Message) -> bytes:
        field = self._binding.response_field
        if message.ByteSize() <= LARGE_BYTES:
            return response_json(message, field)
        return await asyncio.to_thread(response_json, message, field)


async def _write(send: Send, lines: bytes, data: bytes = b"") -> None:
    """Write the lines of an event and its data, which contains no line breaks."""
    body = lines + b"data: " + data + b"\n\n" if data else lines
    await send({"type": "http.response.body", "body": body, "more_body": True})


async def _write_until_disconnect(response: StreamResponse, request: Request, send: Send) -> None:
    """Write the response until it ends or the client disconnects."""
    writing = asyncio.create_task(response.write(send))
    disconnect = asyncio.create_task(_disconnect(request))
    try:
        await asyncio.wait({writing, disconnect}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in (writing, disconnect):
            task.cancel()
        results = await asyncio.gather(writing, disconnect, return_exceptions=True)
    for result in results:
        if isinstance(result, Exception):
            raise result


async def _disconnect(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
