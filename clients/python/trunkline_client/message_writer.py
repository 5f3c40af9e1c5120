"""A message that is written piece by piece, as its author sees it."""

from __future__ import annotations

import time
from collections.abc import AsyncIterable, Iterable
from contextlib import aclosing
from types import TracebackType
from typing import Self

from trunkline.v1.message_pb2 import (
    MESSAGE_STATE_CANCELLED,
    MESSAGE_STATE_COMPLETE,
    MESSAGE_STATE_FAILED,
    Delta,
    Message,
    Part,
)

from trunkline_client.accumulator import Accumulator
from trunkline_client.builders import text_of
from trunkline_client.deciding_error import deciding_error
from trunkline_client.delta_buffer import MAX_KEPT_BYTES
from trunkline_client.errors import Refused, ReplyCancelled, TrunklineError
from trunkline_client.handler import RetryLater
from trunkline_client.message_producer import MessageProducer
from trunkline_client.reader_errors import AGENT_FAILED, error_for_readers, error_for_rejection
from trunkline_client.source_items import items_of
from trunkline_client.well_formed import TextJoiner

#: A write lets the event loop run if something written before is not sent after this long.
MAX_UNWRITTEN_S = 0.01
#: Steps of the event loop in which a batch is read or written.
_STEPS_PER_YIELD = 8


class MessageWriter:
    """An open message, for the length of an `async with` block.

    Entering opens the message on disk. Leaving normally ends it COMPLETE; leaving by an exception ends it
    FAILED; readers get a generic error, or the text of a `Failed`. Both wait until the end is on disk.

    When readers cancel the message, the block is interrupted where it waits, as by `asyncio.timeout`: writing
    raises ReplyCancelled, any other await CancelledError, and the block raises ReplyCancelled. With
    `on_cancel` that is called instead, and only writing raises ReplyCancelled. ReplyExpired and Fenced
    interrupt the block in the same way. If the block's task is cancelled from elsewhere, the message ends
    FAILED without waiting.

    Writing lets the event loop run if it has been blocked for 10 ms, so that what a blocking source yields is
    sent, and a cancel arrives, at the next write.

    One task enters and leaves, once; several may write.
    """

    def __init__(self, producer: MessageProducer) -> None:
        #: The message as an earlier attempt left it, if this one continues it; else None.
        self.resumed: Message | None = None
        self._producer = producer
        self._joiner = TextJoiner()
        self._writes_reasoning = False
        #: Time of the first write that found something unsent; 0 if everything was sent.
        self._unwritten_since_s = 0.0

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._producer!r}>"

    @property
    def id(self) -> str:
        """The message's id; empty before the block is entered."""
        return self._producer.whole.id

    @property
    def message(self) -> Message:
        """The message with everything written so far, whether or not the router has it yet."""
        return self._producer.whole.message

    @property
    def text(self) -> str:
        """The text so far, including that of an earlier attempt."""
        return text_of(self.message)

    @property
    def next_index(self) -> int:
        """Number of deltas so far; above 0 on entering if an earlier attempt is continued."""
        return self._producer.buffer.next_index

    async def write(self, text: str) -> None:
        """Appends text; returns once it is queued.

        Waits while 256 deltas or 64 KiB are unwritten, or 1 MiB is not on disk yet; so it also waits while
        the router is away. Half of a character at the end (a lone surrogate) waits for the other half at the
        start of the next text; without it, U+FFFD takes its place.

        Args:
            text: The text to append; empty appends nothing.

        Raises:
            ReplyCancelled, ReplyExpired, Fenced: The message has ended.
            Refused: The router rejected what was written, for instance MESSAGE_TOO_LARGE.
            RuntimeError: The block is not entered, or has been left.
        """
        await self._wait_for_room()
        self._add_text(text, reasoning=False)

    async def write_reasoning(self, text: str) -> None:
        """Appends reasoning: text that explains how the agent arrives at its answer.

        Args:
            text: The text to append; empty appends nothing.

        Raises:
            ReplyCancelled, ReplyExpired, Fenced, Refused, RuntimeError: As for `write`.
        """
        await self._wait_for_room()
        self._add_text(text, reasoning=True)

    async def add(self, part: Part) -> None:
        """Appends a part.

        Args:
            part: The part. A tool call with the `call_id` of the last part extends its arguments.

        Raises:
            ValueError: The part is larger than 1 MiB.
            ReplyCancelled, ReplyExpired, Fenced, Refused, RuntimeError: As for `write`.
        """
        if part.ByteSize() > MAX_KEPT_BYTES:
            raise ValueError(f"the part has {part.ByteSize()} bytes; at most {MAX_KEPT_BYTES} are allowed")
        await self._wait_for_room()
        self._end_text()
        copy = Part()
        copy.CopyFrom(part)
        self._producer.buffer.add_part(part)
        self._producer.whole.add(Delta(part=copy))
        self._producer.write_soon()

    async def write_from(self, source: AsyncIterable[str | Part] | Iterable[str | Part]) -> None:
        """Appends everything that a source yields: text, and parts.

        The source is closed (`aclose`, `close`) however this ends, so that a generator's `finally` runs and
        its connection to a model ends. A plain iterable runs in threads of the loop's default executor, one
        step at a time. An interruption does not wait for a running step; the iterable is closed after it.

        Args:
            source: An asynchronous or plain iterable of strings and parts.

        Raises:
            TypeError: `source` is a string, or yields something else.
            ReplyCancelled, ReplyExpired, Fenced, Refused, RuntimeError: As for `write`.
        """
        async with aclosing(items_of(source)) as items:
            async for item in items:
                if isinstance(item, str):
                    await self.write(item)
                elif not isinstance(item, Part):
                    raise TypeError(f"the source yields str and Part, not {type(item).__name__}")
                elif item.HasField("reasoning"):
                    await self.write_reasoning(item.reasoning.text)
                else:
                    await self.add(item)

    def _add_text(self, text: str, *, reasoning: bool) -> None:
        if reasoning != self._writes_reasoning:
            self._end_text()
            self._writes_reasoning = reasoning
        if joined := self._joiner.add(text):
            self._write_text(joined)

    def _end_text(self) -> None:
        """Writes what stands for half of a character whose other half did not follow."""
        if rest := self._joiner.end():
            self._write_text(rest)

    def _write_text(self, text: str) -> None:
        reasoning = self._writes_reasoning
        self._producer.buffer.add_text(text, reasoning=reasoning)
        self._producer.whole.add(Delta(reasoning=text) if reasoning else Delta(text=text))
        self._producer.write_soon()

    async def _wait_for_room(self) -> None:
        producer = self._producer
        if not producer.block.is_active:
            raise RuntimeError("The message is not open: write to it inside its `async with` block")
        if not producer.buffer.has_unwritten:
            self._unwritten_since_s = 0.0
        elif not self._unwritten_since_s:
            self._unwritten_since_s = time.monotonic()
        elif time.monotonic() - self._unwritten_since_s > MAX_UNWRITTEN_S:
            # The loop has not run since, because the source blocks it: nothing was sent or received.
            self._unwritten_since_s = 0.0
            await producer.block.let_loop_run(_STEPS_PER_YIELD)
        await producer.block.wait_until(lambda: not producer.buffer.is_full, lambda: producer.failure)

    async def __aenter__(self) -> Self:
        self._producer.block.begin()
        message = Message()
        message.CopyFrom(await self._producer.open())
        if message.next_index:
            self.resumed = Message()
            self.resumed.CopyFrom(message)
        self._producer.whole = Accumulator(message)
        self._producer.block.enter()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        block = self._producer.block
        block.leave()
        try:
            if block.cause is not None:
                await block.absorb_interruption(error)
                await self._end_interrupted(block.cause)
                if error is not block.cause:
                    raise block.cause from error
            else:
                await self._end_after(error)
        finally:
            await self._producer.leave()

    async def _end_after(self, error: BaseException | None) -> None:
        if error is not None:
            error = deciding_error(error)
        if isinstance(error, RetryLater):
            return  # the next attempt continues the message, from before half of a character
        self._end_text()
        if error is None:
            await self._producer.end(MESSAGE_STATE_COMPLETE, None)
        elif isinstance(error, ReplyCancelled):  # of another message, written in this block
            await self._producer.end(MESSAGE_STATE_CANCELLED, None)
        elif isinstance(error, Exception):
            await self._producer.end(MESSAGE_STATE_FAILED, error_for_readers(error))
        else:
            self._producer.end_soon(MESSAGE_STATE_FAILED, AGENT_FAILED)

    async def _end_interrupted(self, cause: TrunklineError) -> None:
        if isinstance(cause, ReplyCancelled):
            self._producer.end_soon(MESSAGE_STATE_CANCELLED, None)
        elif isinstance(cause, Refused):
            await self._producer.end(MESSAGE_STATE_FAILED, error_for_rejection(cause))
