"""A reply while it comes, as the one who asked for it sees it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Self

from trunkline.v1.error_pb2 import Error
from trunkline.v1.message_pb2 import (
    MESSAGE_STATE_UNSPECIFIED,
    Message,
    MessageState,
)

from trunkline_client.builders import text_of
from trunkline_client.events import CancelResult, Delta, Snapshot
from trunkline_client.reply_tracker import TrackedReply


class ReplyStream:
    """Iterates over what is added to a message, until that ends; `Client.ask` and `Client.follow` make one.

        async with client.ask("Tell me a story") as reply:
            async for delta in reply:
                print(delta.text, end="")

    Yields each addition once, those that came together as one, also across reconnects. Where what was
    yielded is void, as the router lost what it had not written yet, it yields a Snapshot of what holds
    in its place. CallIterator ends with the message; how it ended is its `state`. Nothing of it comes by
    the client's own iteration as long as the block lasts, and `Client.positions` may be past it before
    it is taken. What waits here takes no more than the message itself, and delays nobody.

    Waiting raises what ended the client, where that comes first.
    """

    def __init__(
        self,
        following: TrackedReply,
        begin: Callable[[], Awaitable[None]],
        leave: Callable[[], None],
        cancel: Callable[[], Awaitable[CancelResult]],
        catch_up: Callable[[], Awaitable[None]],
        end: Callable[[], BaseException | None],
    ) -> None:
        self._following = following
        self._begin = begin
        self._leave = leave
        self._cancel = cancel
        self._catch_up = catch_up
        self._end = end
        self._stirred = asyncio.Event()
        following.on_change = self._stirred.set

    def __repr__(self) -> str:
        return f"<ReplyStream {MessageState.Name(self.state)}>"

    @property
    def message(self) -> Message | None:
        """The message as received so far; None before there is any. It grows; copy what is to be kept."""
        return None if self._following.whole is None else self._following.whole.message

    @property
    def text(self) -> str:
        """The text received so far."""
        return "" if self.message is None else text_of(self.message)

    @property
    def state(self) -> MessageState.ValueType:
        """OPEN while it comes, then how it has ended; UNSPECIFIED before there is any."""
        return MESSAGE_STATE_UNSPECIFIED if self.message is None else self.message.state

    @property
    def error(self) -> Error | None:
        """Why it FAILED; else None."""
        return self.message.error if self.message is not None and self.message.HasField("error") else None

    async def wait_until_ended(self) -> Message:
        """Waits until it has ended, in whatever state; returns it."""
        await self._until(lambda: self._following.ended)
        assert self.message is not None
        return self.message

    async def cancel(self) -> CancelResult:
        """Stops it, also before there is any. Raises like `Client.send`."""
        return await self._cancel()

    async def __aenter__(self) -> Self:
        try:
            await self._begin()
        except BaseException:
            self._leave()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._leave()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Delta | Snapshot:
        await self._until(lambda: self._following.has_steps or self._following.ended)
        if not self._following.has_steps:
            raise StopAsyncIteration
        return self._following.take()

    async def _until(self, ready: Callable[[], bool]) -> None:
        while not ready():
            ended = self._end()
            if ended is not None:
                raise ended
            if self._following.doubtful:
                self._following.doubtful = False
                await self._catch_up()
                continue
            self._stirred.clear()
            await self._stirred.wait()
