"""A bidirectional gRPC stream with one reader and one writer."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, Generic, TypeVar

import grpc
import grpc.aio

Q = TypeVar("Q")
R = TypeVar("R")


class BidiStream(Generic[Q, R]):
    """Iterates over the messages that a stream receives, while `writer` writes to it.

    Iteration ends with the stream, and raises its AioRpcError unless it ended OK. Any other exception of the
    writer cancels the stream, and `close` raises it. `close` must be called; it leaves nothing running.

    Iteration also ends when `moved` returns, because another router owns the log; `was_left` is true then.
    """

    def __init__(
        self,
        call: grpc.aio.StreamStreamCall[Q, R],
        writer: Callable[[Callable[[Q], Awaitable[None]]], Awaitable[None]],
        moved: Callable[[], Awaitable[None]],
    ) -> None:
        self._call = call
        self.was_left = False
        self._tasks = (
            asyncio.create_task(self._write(writer)),
            asyncio.create_task(self._leave_when(moved)),
        )

    async def _leave_when(self, moved: Callable[[], Awaitable[None]]) -> None:
        await moved()
        self.was_left = True
        self._call.cancel()

    async def _write(self, writer: Callable[[Callable[[Q], Awaitable[None]]], Awaitable[None]]) -> None:
        try:
            # Nothing is written before, so nothing written is lost because there was no connection.
            await self._call.wait_for_connection()
            await writer(self._call.write)
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
            return  # the stream is over; the reader gets the reason
        except Exception:
            self._call.cancel()
            raise

    def __aiter__(self) -> AsyncIterator[R]:
        return self

    async def __anext__(self) -> R:
        try:
            received: Any = await self._call.read()
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if self.was_left and task is not None and not task.cancelling():
                raise StopAsyncIteration from None
            self._raise_failures()  # the stream was cancelled because the writer failed
            raise
        if received is grpc.aio.EOF:
            await self._raise_for_status()
            raise StopAsyncIteration
        return received  # type: ignore[no-any-return]

    async def _raise_for_status(self) -> None:
        code = await self._call.code()
        if code is not grpc.StatusCode.OK:
            raise grpc.aio.AioRpcError(
                code,
                await self._call.initial_metadata(),
                await self._call.trailing_metadata(),
                await self._call.details(),
            )

    def _raise_failures(self) -> None:
        for task in self._tasks:
            if task.done() and not task.cancelled():
                task.result()

    async def close(self) -> None:
        """Cancels the stream and its writer. Idempotent."""
        self._call.cancel()
        for task in self._tasks:
            task.cancel()
        await asyncio.wait(self._tasks)
        self._raise_failures()
