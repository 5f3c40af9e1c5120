"""A worker's streamed reply: a line to the log, and the block that speaks on it."""

from __future__ import annotations

from collections.abc import Callable

from trunkline.v1.agent_service_pb2 import OpenReply
from trunkline.v1.error_pb2 import Error
from trunkline.v1.message_pb2 import MESSAGE_STATE_FAILED, Message, MessageState

from trunkline_client.delta_buffer import DeltaBuffer
from trunkline_client.errors import ReplyCancelled, TrunklineError
from trunkline_client.message_writer import INTERRUPTED, MessageWriter, OnCancel
from trunkline_client.reply_state import ReplyState


class StreamedReply(MessageWriter):
    """A reply while it is said; `Worker.reply` and `Worker.open_message` make one. See `MessageWriter`.

    Where the log holds what an earlier attempt said, `resumed` is that, and what is written is added to
    it: a handler that makes the same words again should leave out those that `text` has already.
    Entering raises AlreadyAnswered where the reply has ended, ReplyCancelled where nobody wants it any
    longer, and Refused where the router refuses it. A reply that EXPIRED is begun anew.

    It outlives the stream to the router: after a break it goes on where the log ends, once the router
    has given its delivery back to this worker. Fenced is raised where that does not happen.
    """

    def __init__(
        self,
        request: OpenReply,
        posted: Callable[[StreamedReply], None],
        left: Callable[[StreamedReply], None],
        on_cancel: OnCancel | None,
    ) -> None:
        """`posted` is called when there is something to write, `left` when the block was left."""
        super().__init__(on_cancel)
        self.line = ReplyState(request, lambda: self.message)
        #: It has ended FAILED by what went wrong in its block, and its readers know.
        self.failure_reported = False
        self._posted = posted
        self._on_left = left

    def __repr__(self) -> str:
        return f"<StreamedReply {self.id} {self.line!r}>"

    def changed(self) -> None:
        """The router has said something about the line."""
        cause: TrunklineError | None = self.line.failure or self.line.refusal
        if cause is not None:
            self.interrupt(cause)
        self.stirred()

    def abandon(self) -> None:
        """Ends it FAILED where nobody has ended it; its block is over, or should be."""
        if not self.line.is_over:
            self._end_soon(MESSAGE_STATE_FAILED, INTERRUPTED)

    @property
    def _outgoing(self) -> DeltaBuffer:
        return self.line.outgoing

    @property
    def _failure(self) -> TrunklineError | None:
        return self.line.failure

    def _stir(self) -> None:
        self._posted(self)

    async def _open(self) -> Message:
        try:
            self._posted(self)
            await self._until(lambda: self.line.message is not None)
        except BaseException:
            if self.line.must_open:
                self.line.give_up(ReplyCancelled("The reply was left before it was open"))
            self._on_left(self)
            raise
        assert self.line.message is not None
        return self.line.message

    async def _end(self, state: MessageState.ValueType, error: Error | None) -> None:
        self._end_soon(state, error)
        await self._until(lambda: self.line.is_over)
        self.failure_reported = self.line.ended == MESSAGE_STATE_FAILED
        if self.failure_reported and state != MESSAGE_STATE_FAILED:
            assert self.line.refusal is not None
            raise self.line.refusal  # of what was written last, after the block had asked for its end

    def _end_soon(self, state: MessageState.ValueType, error: Error | None) -> None:
        self.line.finish(state, error)
        self._posted(self)

    async def _left(self) -> None:
        self._on_left(self)
