"""Runs a bidirectional stream: a reader and a writer, until one finishes or the runtime ends both."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import grpc.aio
from trunkline.v1 import catalogue

from trunkline_router.runtime import PeerStream

#: Time that a peer has to read the write in progress when its stream ends.
LAST_WRITE_S = 1.0


async def run(
    stream: PeerStream, reading: Coroutine[Any, Any, None], writing: Coroutine[Any, Any, None]
) -> None:
    """Run both until the reader reaches the end, either raises, or the stream is ended.

    Raises Refused if the runtime ended the stream or the reader refused a message. On return and on
    cancellation both have stopped; a write in progress has finished, unless the peer does not read.
    """
    reader = asyncio.create_task(reading)
    writer = asyncio.create_task(writing)
    try:
        awaited: set[asyncio.Future[Any]] = {reader, writer, stream.ended}
        await asyncio.wait(awaited, return_when=asyncio.FIRST_COMPLETED)
    finally:
        reader.cancel()
        await _stop(writer, stream)
        results = await asyncio.gather(reader, writer, return_exceptions=True)
    if stream.ended.done():
        raise stream.ended.result()
    for result in results:
        if isinstance(result, Exception) and not isinstance(
            result, grpc.aio.BaseError | asyncio.InvalidStateError
        ):
            raise result


async def _stop(writer: asyncio.Task[None], stream: PeerStream) -> None:
    """Stop the writer. While a write is in progress, gRPC accepts no other, not even the call's status."""
    stream.is_closing = True
    try:
        if stream.is_writing:
            await asyncio.wait({writer}, timeout=LAST_WRITE_S)
    finally:
        writer.cancel()


async def read_hello(context: grpc.aio.ServicerContext[Any, Any]) -> Any:
    """Read the first message of a stream. Raises Refused HELLO_EXPECTED if it has no hello."""
    message = await context.read()
    if message is grpc.aio.EOF or not message.HasField("hello"):
        raise catalogue.HELLO_EXPECTED.refused()
    return message


async def write_batches(
    context: grpc.aio.ServicerContext[Any, Any],
    stream: PeerStream,
    take: Callable[[], Any | None],
    heartbeat: Callable[[], Any] | None = None,
    written: Callable[[], None] = lambda: None,
) -> None:
    """Write the batches that `take` returns, one at a time; output gathered meanwhile forms the next batch.

    While the stream is held, only heartbeats are written.

    Calls `written` after each batch, and writes a `heartbeat` if one is due and nothing else was written.
    """
    while not stream.is_closing:
        await stream.wake.wait()
        stream.wake.clear()
        stream.is_writing = True
        while not (stream.is_closing or stream.is_held()) and (batch := take()) is not None:
            stream.heartbeat_due = False
            await context.write(batch)
            written()
        if stream.heartbeat_due and not stream.is_closing and heartbeat is not None:
            stream.heartbeat_due = False
            await context.write(heartbeat())
        stream.is_writing = False
