"""RPCs whose answer is a stream, as server-sent events: WatchConnections and its like.

Each message of the answer is an event, named `watch_connections` where the RPC is WatchConnections. Where
the call fails after the response has begun, the last event is `error`, whose data is a google.rpc.Status.
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

#: How long a first message is waited for, so that a refusal can be a status. It comes within milliseconds.
FIRST_WAIT_S = 1.0

#: After so long without a message a comment is sent, so that no proxy takes the connection for dead.
HEARTBEAT_S = 20.0

HEADERS = [
    (b"content-type", b"text/event-stream"),
    (b"cache-control", b"no-store"),
    (b"x-accel-buffering", b"no"),
]


def routes(calls: RouterClient, access: CallerMetadata) -> list[BaseRoute]:
    """All RPCs with a stream for an answer that GET can ask for; to be mounted before all unary ones."""
    return [ServerStreams(calls, access)]


class ServerStreams(BaseRoute):
    """Answers GET where an RPC's answer is a stream."""

    def __init__(self, calls: RouterClient, access: CallerMetadata) -> None:
        self._calls = calls
        self._access = access
        self._bodies = BodyReader()
        self._table: PathRouter[Binding] = PathRouter()
        for binding in bindings():
            if binding.method.server_streaming and binding.http_method == "GET":
                self._table.add(binding.http_method, binding.pattern, binding)

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        """See BaseRoute."""
        if scope["type"] != "http" or scope["method"] != "GET":
            return Match.NONE, {}
        try:
            found = self._table.find(scope["raw_path"].decode("latin-1"))
        except UnicodeDecodeError:
            return Match.NONE, {}
        if found is None:
            return Match.NONE, {}
        return Match.FULL, {"watched": (found.methods["GET"], found.values)}

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See BaseRoute."""
        request = Request(scope, receive)
        try:
            stream = await self._call(request, *scope["watched"])
        except (CallFailed, Refused) as reason:
            failed = CallFailed.of(reason) if isinstance(reason, Refused) else reason
            await failure_response(failed)(scope, receive, send)
            return
        async with aclosing(stream):
            watch = ServerStream(scope["watched"][0], stream)
            try:
                await watch.begin()
                await _until_left(watch, request, send)
            except CallFailed as failed:
                await failure_response(failed)(scope, receive, send)
            finally:
                await watch.end()

    async def _call(
        self, request: Request, binding: Binding, values: tuple[str, ...]
    ) -> AsyncGenerator[Message]:
        """The messages of the answer; the call is made when the first is asked for.

        Raises CallFailed and Refused.
        """
        metadata = self._access.metadata(request, binding.tenant_in(values), binding.scope)
        async with self._bodies.body(request, wanted=False):
            message = request_message(binding, values, request.scope["query_string"], b"")
        stream = self._calls.stream(binding.method, message, metadata=metadata)
        return cast("AsyncGenerator[Message]", stream)


class ServerStream:
    """One answer under way: `begin`, `write` unless that was refused, and `end` in any case."""

    def __init__(self, binding: Binding, stream: AsyncGenerator[Message]) -> None:
        rpc = re.sub(r"(?<!^)(?=[A-Z])", "_", binding.method.name).lower()
        self._event = rpc.encode()
        self._binding = binding
        self._stream = stream
        self._coming: asyncio.Future[Message] | None = None

    async def begin(self) -> None:
        """Make the call. Raises CallFailed where it is refused."""
        done, _ = await asyncio.wait({self._next()}, timeout=FIRST_WAIT_S)
        for coming in done:
            if isinstance(failed := coming.exception(), CallFailed):
                raise failed

    async def write(self, send: Send) -> None:
        """Write the whole response."""
        await send({"type": "http.response.start", "status": 200, "headers": HEADERS})
        # The head leaves with the first of the body.
        await _write(send, b": watching\n\n")
        number = 0
        try:
            while True:
                done, _ = await asyncio.wait({self._next()}, timeout=HEARTBEAT_S)
                if not done:
                    await _write(send, b": ping\n\n")
                    continue
                message = self._taken()
                number += 1
                await _write(send, b"event: %b\nid: %d\n" % (self._event, number), await self._json(message))
        except StopAsyncIteration:
            pass
        except CallFailed as failed:
            await _write(send, b"event: error\n", bytes(failure_response(failed).body))
        await send({"type": "http.response.body", "body": b""})

    async def end(self) -> None:
        """Let go of the call."""
        if self._coming is not None:
            self._coming.cancel()
            with suppress(asyncio.CancelledError, CallFailed, StopAsyncIteration):
                await self._coming

    def _next(self) -> asyncio.Future[Message]:
        if self._coming is None:
            self._coming = asyncio.ensure_future(anext(self._stream))
        return self._coming

    def _taken(self) -> Message:
        assert self._coming is not None
        coming, self._coming = self._coming, None
        return coming.result()

    async def _json(self, message: Message) -> bytes:
        field = self._binding.response_field
        if message.ByteSize() <= LARGE_BYTES:
            return response_json(message, field)
        return await asyncio.to_thread(response_json, message, field)


async def _write(send: Send, lines: bytes, data: bytes = b"") -> None:
    """Write lines of an event and, if there is any, its data, which has no line breaks in it."""
    body = lines + b"data: " + data + b"\n\n" if data else lines
    await send({"type": "http.response.body", "body": body, "more_body": True})


async def _until_left(watch: ServerStream, request: Request, send: Send) -> None:
    """Write to a client until that is done, or the client has gone."""
    writing = asyncio.create_task(watch.write(send))
    leaving = asyncio.create_task(_left(request))
    try:
        await asyncio.wait({writing, leaving}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in (writing, leaving):
            task.cancel()
        results = await asyncio.gather(writing, leaving, return_exceptions=True)
    for result in results:
        if isinstance(result, Exception):
            raise result


async def _left(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
