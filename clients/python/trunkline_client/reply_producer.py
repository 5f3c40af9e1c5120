"""A worker's streamed reply at the router, over one stream after another."""

from __future__ import annotations

from collections.abc import Callable

from trunkline.v1.agent_service_pb2 import OpenReply
from trunkline.v1.error_pb2 import Error
from trunkline.v1.message_pb2 import MESSAGE_STATE_CANCELLED, MESSAGE_STATE_FAILED, Message, MessageState

from trunkline_client.delta_buffer import DeltaBuffer
from trunkline_client.errors import ReplyCancelled, TrunklineError
from trunkline_client.interruptible_block import OnCancel
from trunkline_client.message_producer import MessageProducer
from trunkline_client.reader_errors import AGENT_FAILED
from trunkline_client.reply_state import ReplyState


class ReplyProducer(MessageProducer):
    """Writes a reply on the worker's stream, through its `ReplyState`.

    `post(self)` is called when there is something to write, `on_left(self)` when the block was left. The
    worker's stream passes what the router reports to `state` and then calls `state_changed`.
    """

    def __init__(
        self,
        request: OpenReply,
        post: Callable[[ReplyProducer], None],
        on_left: Callable[[ReplyProducer], None],
        on_cancel: OnCancel | None,
    ) -> None:
        super().__init__(on_cancel)
        self.state = ReplyState(request, lambda: self.whole.message)
        #: Whether the reply ended FAILED by an exception in its block, so its readers know.
        self.failure_reported = False
        self._post = post
        self._on_left = on_left

    def __repr__(self) -> str:
        return f"{self.whole.id} {self.state!r}"

    @property
    def buffer(self) -> DeltaBuffer:
        """Deltas on their way to the log."""
        return self.state.buffer

    @property
    def failure(self) -> TrunklineError | None:
        """The reason why the reply ended, unless this producer ended it."""
        return self.state.failure

    def write_soon(self) -> None:
        """Queues the reply for the worker's stream."""
        self._post(self)

    def state_changed(self) -> None:
        """Interrupts the block if nothing more can be written, and wakes those who wait."""
        cause = self.state.failure or self.state.rejection
        if cause is not None:
            self.block.interrupt(cause)
        self.block.notify()

    def abandon(self) -> None:
        """Ends the reply FAILED unless it has ended, or its block was never entered."""
        if not (self.state.is_over or self.block.is_new):
            self.end_soon(MESSAGE_STATE_FAILED, AGENT_FAILED)

    async def open(self) -> Message:
        """Opens the reply and waits until the router has opened it on disk."""
        try:
            self._post(self)
            await self.block.wait_until(lambda: self.state.message is not None, lambda: self.failure)
        except BaseException as error:
            if isinstance(error, ReplyCancelled):
                self.end_soon(MESSAGE_STATE_CANCELLED, None)
            if self.state.must_open:
                self.state.give_up(ReplyCancelled("The reply was given up before it was open"))
            self._on_left(self)
            raise
        assert self.state.message is not None
        return self.state.message

    async def end(self, state: MessageState.ValueType, error: Error | None) -> None:
        """Ends the reply and waits until the end is on disk."""
        self.end_soon(state, error)
        await self.block.wait_until(lambda: self.state.is_over, lambda: self.failure)
        self.failure_reported = self.state.ended == MESSAGE_STATE_FAILED
        if self.failure_reported and state != MESSAGE_STATE_FAILED:
            assert self.state.rejection is not None
            raise self.state.rejection  # of the last deltas, after the block had asked for this end

    def end_soon(self, state: MessageState.ValueType, error: Error | None) -> None:
        """Ends the reply after its deltas; only the first call counts."""
        self.state.finish(state, error)
        self._post(self)

    async def leave(self) -> None:
        """Reports that the block was left; a pending end is still written."""
        self._on_left(self)
