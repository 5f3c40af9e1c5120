"""A message while it is said piece by piece, as its author sees it."""

from __future__ import annotations

import asyncio
import re
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType
from typing import Self

from trunkline.v1.error_pb2 import Error
from trunkline.v1.message_pb2 import (
    MESSAGE_STATE_CANCELLED,
    MESSAGE_STATE_COMPLETE,
    MESSAGE_STATE_FAILED,
    Delta,
    Message,
    MessageState,
    Part,
)

from trunkline_client.accumulator import Accumulator
from trunkline_client.builders import text_of
from trunkline_client.delta_buffer import MAX_KEPT_BYTES, DeltaBuffer
from trunkline_client.errors import Refused, ReplyCancelled, TrunklineError
from trunkline_client.outcomes import RetryLater

#: What readers are told of a message that was left without an end.
INTERRUPTED = Error(code="INTERRUPTED", message="The reply was interrupted")

#: Called in place of interrupting the block.
OnCancel = Callable[[], None]


class MessageWriter(ABC):
    """An open message, for the length of an `async with` block.

    Entering opens it on disk. Leaving normally ends it COMPLETE, leaving by an exception ends it FAILED
    with the exception's name and text, which all readers are told; both wait until the end is on disk.

    When its readers cancel it, the block is interrupted where it waits, as by `asyncio.timeout`: inside
    by CancelledError, and the block itself raises ReplyCancelled. With `on_cancel` that is called
    instead, and only the writing raises ReplyCancelled. ReplyExpired and Fenced interrupt the block in
    the same way. A block that is cancelled by somebody else ends its message FAILED, without waiting.

    One task enters and leaves it; several may write.
    """

    def __init__(self, on_cancel: OnCancel | None) -> None:
        #: What an earlier attempt said, where this one goes on from there; else None.
        self.resumed: Message | None = None
        self._said = Accumulator(Message())
        self._on_cancel = on_cancel
        self._stirred = asyncio.Event()
        self._task: asyncio.Task[object] | None = None
        self._inside = False
        self._cancelling = 0
        #: Why the block was interrupted.
        self._cause: TrunklineError | None = None

    # What the author uses.

    @property
    def id(self) -> str:
        """The message's id; empty before the block is entered."""
        return self._said.id

    @property
    def message(self) -> Message:
        """The message with all that was written so far, whether or not anybody has it yet."""
        return self._said.message

    @property
    def text(self) -> str:
        """The text so far, that of an earlier attempt included."""
        return text_of(self.message)

    @property
    def next_index(self) -> int:
        """Number of deltas so far; over 0 on entering where an earlier attempt is gone on with."""
        return self._outgoing.next_index

    async def write(self, text: str) -> None:
        """Adds text at the end.

        Returns once it is queued; waits before that while 256 deltas or 64 KiB are unwritten, or 1 MiB
        is not on disk, which is also what happens while there is no router. Raises ReplyCancelled,
        ReplyExpired or Fenced where nothing can be added any more, and Refused where the router refuses
        it, such as MESSAGE_TOO_LARGE.
        """
        await self._room()
        self._outgoing.add_text(text)
        self._said.add(Delta(text=text))
        self._stir()

    async def write_reasoning(self, text: str) -> None:
        """The same for what the agent thinks on the way."""
        await self._room()
        self._outgoing.add_text(text, reasoning=True)
        self._said.add(Delta(reasoning=text))
        self._stir()

    async def add(self, part: Part) -> None:
        """Adds a part. A tool call that has the `call_id` of the one at the end adds to its arguments.

        Waits and raises like `write`; raises ValueError for a part over 1 MiB.
        """
        if part.ByteSize() > MAX_KEPT_BYTES:
            raise ValueError(f"the part has {part.ByteSize()} bytes; {MAX_KEPT_BYTES} can be sent")
        await self._room()
        copy = Part()
        copy.CopyFrom(part)
        self._outgoing.add_part(part)
        self._said.add(Delta(part=copy))
        self._stir()

    async def _room(self) -> None:
        if not self._inside:
            raise RuntimeError("a message is written to inside its `async with` block")
        await self._until(lambda: not self._outgoing.is_full)

    async def __aenter__(self) -> Self:
        task = asyncio.current_task()
        assert task is not None
        message = Message()
        message.CopyFrom(await self._open())
        if message.next_index:
            self.resumed = Message()
            self.resumed.CopyFrom(message)
        self._said = Accumulator(message)
        self._task, self._cancelling, self._inside = task, task.cancelling(), True
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._inside = False
        try:
            if self._cause is not None:
                await self._take_back_interruption(error)
                await self._end_interrupted(self._cause)
                raise self._cause from error
            await self._end_after(error)
        finally:
            await self._left()

    async def _end_after(self, error: BaseException | None) -> None:
        if error is None:
            await self._end(MESSAGE_STATE_COMPLETE, None)
        elif isinstance(error, RetryLater):
            return  # the next attempt goes on with it
        elif isinstance(error, Exception):
            await self._end(MESSAGE_STATE_FAILED, error_of(error))
        else:
            self._end_soon(MESSAGE_STATE_FAILED, INTERRUPTED)

    async def _end_interrupted(self, cause: TrunklineError) -> None:
        if isinstance(cause, ReplyCancelled):
            self._end_soon(MESSAGE_STATE_CANCELLED, None)
        elif isinstance(cause, Refused):
            await self._end(MESSAGE_STATE_FAILED, error_of(cause))

    async def _take_back_interruption(self, error: BaseException | None) -> None:
        """Undoes our cancel of the task; goes on with another one that came besides."""
        assert self._task is not None
        if isinstance(self._cause, ReplyCancelled) and self._on_cancel is not None:
            return
        if not isinstance(error, asyncio.CancelledError):
            with suppress(asyncio.CancelledError):
                await asyncio.sleep(0)  # asked for and not yet felt, it is felt here
        if self._task.uncancel() > self._cancelling:
            raise asyncio.CancelledError

    # What the shell calls.

    @property
    def is_inside(self) -> bool:
        """Whether its block is being run."""
        return self._inside

    def interrupt(self, cause: TrunklineError) -> None:
        """Nothing can be added any more; the first cause counts."""
        self._stirred.set()
        if self._cause is not None or not self._inside:
            return
        self._cause = cause
        if isinstance(cause, ReplyCancelled) and self._on_cancel is not None:
            self._on_cancel()
        else:
            assert self._task is not None
            self._task.cancel()

    def stirred(self) -> None:
        """Something has changed for those who wait."""
        self._stirred.set()

    async def _until(self, ready: Callable[[], bool]) -> None:
        """Waits for it. Raises what has made it impossible."""
        while True:
            if self._cause is not None and self._inside:
                await asyncio.sleep(0)  # where the interruption is still to be felt, it is felt here
                raise self._cause
            if self._failure is not None:
                raise self._failure
            if ready():
                return
            self._stirred.clear()
            await self._stirred.wait()

    # What producers have in their own ways.

    @property
    @abstractmethod
    def _outgoing(self) -> DeltaBuffer:
        """Its deltas."""

    @property
    @abstractmethod
    def _failure(self) -> TrunklineError | None:
        """Why it is over, where that was not asked for."""

    @abstractmethod
    def _stir(self) -> None:
        """There is something to write."""

    @abstractmethod
    async def _open(self) -> Message:
        """Opens it; raises where it cannot be opened."""

    @abstractmethod
    async def _end(self, state: MessageState.ValueType, error: Error | None) -> None:
        """Ends it after all that was written; raises where it has ended otherwise."""

    @abstractmethod
    def _end_soon(self, state: MessageState.ValueType, error: Error | None) -> None:
        """Ends it without waiting, if that can still be done."""

    @abstractmethod
    async def _left(self) -> None:
        """The block was left."""


def error_of(error: Exception) -> Error:
    """What readers are told about an exception: its class's name as a code, and its text."""
    if isinstance(error, Refused):
        return Error(code=error.code, message=error.message)
    name = type(error).__name__
    code = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", name).upper()
    return Error(code=code, message=str(error)[:1024] or name)
