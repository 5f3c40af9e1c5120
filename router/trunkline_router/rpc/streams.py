"""How a bidirectional stream is run: a reader and a writer, until one ends or the shell ends both."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import grpc.aio
from trunkline.v1 import catalogue

from trunkline_router.runtime import AttachedStream

#: So long a peer has for reading what was being written when its stream ended.
LAST_WRITE_S = 1.0


async def run(
    stream: AttachedStream, reading: Coroutine[Any, Any, None], writing: Coroutine[Any, Any, None]
) -> None:
    """Run both until the reader has come to the end, either raises, or the stream is ended.

    Raises Refused where the shell ended the stream or the reader refused what it read. On return
    and on cancellation both have stopped; a write that was under way has come to its end, unless the peer
    reads nothing.
    """
    reader = asyncio.create_task(reading)
    writer = asyncio.create_task(writing)
    try:
        waited: set[asyncio.Future[Any]] = {reader, writer, stream.ended}
        await asyncio.wait(waited, return_when=asyncio.FIRST_COMPLETED)
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


async def _stop(writer: asyncio.Task[None], stream: AttachedStream) -> None:
    """While a write is under way gRPC takes no other, not even of how the call has ended."""
    stream.is_over = True
    try:
        if stream.is_writing:
            await asyncio.wait({writer}, timeout=LAST_WRITE_S)
    finally:
        writer.cancel()


async def first(context: grpc.aio.ServicerContext[Any, Any]) -> Any:
    """The first message of a stream. Raises Refused HELLO_EXPECTED where it has no hello."""
    message = await context.read()
    if message is grpc.aio.EOF or not message.HasField("hello"):
        raise catalogue.HELLO_EXPECTED.refused()
    return message


async def write_batches(
    context: grpc.aio.ServicerContext[Any, Any],
    stream: AttachedStream,
    take: Callable[[], Any | None],
    sign_of_life: Callable[[], Any] | None = None,
    written: Callable[[], None] = lambda: None,
) -> None:
    """Write what `take` gives, one batch at a time: what gathers while one is written is the next."""
    while not stream.is_over:
        await stream.wake.wait()
        stream.wake.clear()
        stream.is_writing = True
        while not stream.is_over and (batch := take()) is not None:
            stream.beat = False
            await context.write(batch)
            written()
        if stream.beat and not stream.is_over and sign_of_life is not None:
            stream.beat = False
            await context.write(sign_of_life())
        stream.is_writing = False
