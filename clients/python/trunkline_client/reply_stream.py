"""A reply while it is streamed, as its reader sees it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from types import TracebackType
from typing import Self

from trunkline.v1.error_pb2 import Error
from trunkline.v1.frame_pb2 import REPLY_STATUS_RETRYING
from trunkline.v1.message_pb2 import MESSAGE_STATE_UNSPECIFIED, Message, MessageState

from trunkline_client.builders import text_of
from trunkline_client.events import CancelResult, Delta, Snapshot
from trunkline_client.reply_source import ReplySource


class ReplyStream:
    """Iterates over the additions to a message until it ends; `Client.ask` and `Client.follow` make one.

        async with client.ask("Tell me a story") as reply:
            async for delta in reply:
                print(delta.text, end="")

    Each addition is yielded once, also across reconnects; those that arrived together are joined. If
    additions that were yielded became void, because the router lost text that was not on disk yet, a
    Snapshot of the message replaces them. Iteration ends with the message; `state` is then its final state.
    While the block lasts, the client's own iteration leaves the message out, and `Client.positions` may
    be past it before it is taken. Additions that wait here take no more memory than the message itself,
    and delay nothing else.

    Iteration raises the error that ended the client, if the client ends first.
    """

    def __init__(self, source: ReplySource, client_end: Callable[[], BaseException | None]) -> None:
        self._source = source
        self._reply = source.reply
        self._client_end = client_end
        self._changed = asyncio.Event()
        self._reply.on_change = self._changed.set

    def __repr__(self) -> str:
        return f"<ReplyStream {MessageState.Name(self.state)}>"

    @property
    def message(self) -> Message | None:
        """The message as received so far; None before it begins. It grows: copy it to keep it."""
        return None if self._reply.whole is None else self._reply.whole.message

    @property
    def text(self) -> str:
        """The text received so far."""
        return "" if self.message is None else text_of(self.message)

    @property
    def state(self) -> MessageState.ValueType:
        """OPEN while the message grows, then the state in which it ended; UNSPECIFIED before it begins."""
        return MESSAGE_STATE_UNSPECIFIED if self.message is None else self.message.state

    @property
    def error(self) -> Error | None:
        """The reason why the message FAILED; else None."""
        return self.message.error if self.message is not None and self.message.HasField("error") else None

    @property
    def is_late(self) -> bool:
        """Whether the agent has failed to answer so far, and is tried again."""
        return not self._reply.ended and self._reply.status.status == REPLY_STATUS_RETRYING

    async def wait_until_ended(self) -> Message:
        """Waits until the message has ended, in whatever state.

        Returns:
            The whole message.

        Raises:
            TrunklineError: The error that ended the client, if that comes first.
        """
        await self._wait_until(lambda: self._reply.ended)
        assert self.message is not None
        return self.message

    async def cancel(self) -> CancelResult:
        """Cancels the message, even before it begins.

        Returns:
            The effect.

        Raises:
            Refused, TransportError, Closed: As for `Client.send`.
        """
        return await self._source.cancel()

    async def __aenter__(self) -> Self:
        try:
            await self._source.begin()
        except BaseException:
            self._source.leave()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._source.leave()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Delta | Snapshot:
        await self._wait_until(lambda: self._reply.has_steps or self._reply.ended)
        if not self._reply.has_steps:
            raise StopAsyncIteration
        return self._reply.take()

    async def _wait_until(self, ready: Callable[[], bool]) -> None:
        while not ready():
            end = self._client_end()
            if end is not None:
                raise end
            if self._reply.stale:
                self._reply.stale = False
                await self._source.catch_up()
                continue
            self._changed.clear()
            await self._changed.wait()
