"""State of one streamed reply across the worker's streams to the router. Pure."""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum

from trunkline.v1.agent_service_pb2 import EndReply, OpenReply, ReplyEnded, ReplyOpened, ReplyProgress
from trunkline.v1.error_pb2 import Error
from trunkline.v1.message_pb2 import (
    MESSAGE_STATE_CANCELLED,
    MESSAGE_STATE_COMPLETE,
    MESSAGE_STATE_EXPIRED,
    MESSAGE_STATE_FAILED,
    MESSAGE_STATE_OPEN,
    MESSAGE_STATE_UNSPECIFIED,
    Delta,
    Message,
    MessageState,
)

from trunkline_client.accumulator import difference
from trunkline_client.delta_buffer import DeltaBuffer
from trunkline_client.errors import (
    AlreadyAnswered,
    Fenced,
    Refused,
    ReplyCancelled,
    ReplyExpired,
    TrunklineError,
)
from trunkline_client.reader_errors import error_for_rejection

#: The deltas can never be added, but the reply can still be ended.
_REJECTED_DELTAS = frozenset({"MESSAGE_TOO_LARGE", "INVALID_ARGUMENT"})

_FENCED = frozenset({"PRODUCER_FENCED", "DELIVERY_NOT_HELD"})


class ReplyPhase(Enum):
    """Phase of a reply on the current stream."""

    #: Not opened on it: the stream is new, or the delivery has not been redelivered yet.
    DETACHED = 0
    OPENING = 1
    OPEN = 2
    #: The end is written.
    ENDING = 3
    #: The router rejected the end for now.
    END_REFUSED = 4


class ReplyState:
    """A reply from its opening to its end.

    The owner writes `open_request` on each new stream, then what `take_deltas` and `take_end` return, and
    passes the router's reports to the `on_` methods. The reply is over once `ended` or `failure` is set.
    """

    def __init__(self, request: OpenReply, written: Callable[[], Message]) -> None:
        """`written()` returns the message with everything ever written to it, on this stream or before."""
        self.buffer = DeltaBuffer()
        self._written = written
        self.phase = ReplyPhase.DETACHED
        #: The message as it was when it was first opened.
        self.message: Message | None = None
        self.ended: MessageState.ValueType = MESSAGE_STATE_UNSPECIFIED
        #: The reason why it is over, unless this worker ended it.
        self.failure: TrunklineError | None = None
        #: Rejection of the last deltas: nothing more can be added, but the reply can still be ended.
        self.rejection: Refused | None = None
        self._request = request
        self._key = request.key
        self._openings = 1
        self._pending_end: EndReply | None = None

    def __repr__(self) -> str:
        return f"<ReplyState {self._request.key} {self.phase.name} {self.buffer!r}>"

    @property
    def is_over(self) -> bool:
        """Whether nothing remains to be written."""
        return self.failure is not None or self.ended != MESSAGE_STATE_UNSPECIFIED

    @property
    def must_open(self) -> bool:
        """Whether `open_request` must be written first."""
        return self.phase is ReplyPhase.DETACHED and not self.is_over

    @property
    def has_output(self) -> bool:
        """Whether `take_deltas` or `take_end` would return something."""
        has_any = self.buffer.has_unwritten or self._pending_end is not None
        return has_any and self.phase is ReplyPhase.OPEN and not self.is_over

    @property
    def has_pending_end(self) -> bool:
        """Whether an end was requested and is not written yet."""
        return self._pending_end is not None and not self.is_over and self.phase is not ReplyPhase.ENDING

    # Requests of the owner.

    def finish(self, state: MessageState.ValueType, error: Error | None) -> None:
        """Requests the end, after all deltas; only the first call counts."""
        if self._pending_end is None:
            self._pending_end = EndReply(state=state, error=error)

    def give_up(self, failure: TrunklineError) -> None:
        """Ends the reply on this side only: another worker has it, or its readers cancelled it."""
        if not self.is_over:
            self.failure = failure

    # Output.

    def open_request(self, number: int) -> OpenReply:
        """The request that opens the reply on the current stream under this number."""
        self.phase = ReplyPhase.OPENING
        request = OpenReply()
        request.CopyFrom(self._request)
        request.reply = number
        return request

    def take_deltas(self, max_bytes: int, max_items: int) -> list[Delta]:
        """Returns the deltas to write next."""
        return self.buffer.take(max_bytes, max_items) if self.phase is ReplyPhase.OPEN else []

    def take_end(self, number: int) -> EndReply | None:
        """Returns the end once it is requested and everything before it is written; else None."""
        if self.phase is not ReplyPhase.OPEN or self._pending_end is None or self.buffer.has_unwritten:
            return None
        self.phase = ReplyPhase.ENDING
        self._pending_end.reply = number
        self._pending_end.next_index = self.buffer.next_index
        return self._pending_end

    def retry_end(self) -> None:
        """Makes an end that was rejected for now due again."""
        if self.phase is ReplyPhase.END_REFUSED:
            self.phase = ReplyPhase.OPEN

    def stream_lost(self) -> None:
        """Records that the stream broke."""
        self.phase = ReplyPhase.DETACHED

    # Reports of the router.

    def on_opened(self, report: ReplyOpened) -> None:
        """Handles the answer to `open_request`."""
        if self.is_over:
            return
        if report.HasField("error"):
            self.failure = _error_of(report.error)
        elif self.message is None:
            self._on_first_opening(report.message)
        else:
            self._on_reopening(report.message)

    def _on_first_opening(self, message: Message) -> None:
        match message.state:
            case MessageState.MESSAGE_STATE_OPEN:
                self.phase = ReplyPhase.OPEN
                self.message = message
                self.buffer.begin(message.next_index)
            case MessageState.MESSAGE_STATE_EXPIRED:
                # Nothing can be added to the reply of an earlier attempt: open a new one.
                self._openings += 1
                self._request.key = f"{self._key}~{self._openings}"
                self.phase = ReplyPhase.DETACHED
            case MessageState.MESSAGE_STATE_CANCELLED:
                self.failure = ReplyCancelled(f"Message {message.id} was cancelled")
            case _:
                self.failure = AlreadyAnswered(message)

    def _on_reopening(self, message: Message) -> None:
        """Continues from the content of the log, not from its number of deltas.

        Another worker may have had the reply meanwhile, and divided the same words differently or written
        other ones.
        """
        if message.state != MESSAGE_STATE_OPEN:
            self._record_end(message.state)
            return
        written = self._written()
        # The author may not know yet that the reply was opened at all.
        mine = written if written.id == message.id else self.message
        missing = difference(message, mine or Message())
        if missing is None:
            self.failure = Fenced(f"Another worker has added to message {message.id}")
            return
        self.buffer.restart(message.next_index, [] if self.rejection else missing)
        self.phase = ReplyPhase.OPEN

    def on_progress(self, report: ReplyProgress) -> None:
        """Handles a report of what is on disk, or of a rejected delta."""
        self.buffer.forget_before(report.durable_index)
        if self.is_over or not report.HasField("error"):
            return
        refusal = _error_of(report.error)
        if isinstance(refusal, Refused) and refusal.code == "DELTA_GAP":
            if self.phase is not ReplyPhase.OPENING and self.buffer.rewind_to(report.next_index):
                self.phase = ReplyPhase.OPEN
        elif isinstance(refusal, Refused) and refusal.code in _REJECTED_DELTAS:
            self.rejection = refusal
            self.buffer.drop_unwritten()
            self._fail_pending_end(refusal)
        else:
            self.failure = refusal

    def _fail_pending_end(self, refusal: Refused) -> None:
        """Turns a pending COMPLETE into FAILED."""
        if self._pending_end is None or self._pending_end.state != MESSAGE_STATE_COMPLETE:
            return
        self._pending_end = EndReply(state=MESSAGE_STATE_FAILED, error=error_for_rejection(refusal))
        if self.phase in (ReplyPhase.ENDING, ReplyPhase.END_REFUSED):
            self.phase = ReplyPhase.OPEN

    def on_ended(self, report: ReplyEnded) -> None:
        """Handles the end of the reply, or the rejection of one."""
        if self.is_over:
            return
        if not report.HasField("error"):
            self._record_end(report.state)
            return
        refusal = _error_of(report.error)
        if isinstance(refusal, Refused) and refusal.retryable:
            self.phase = ReplyPhase.END_REFUSED
        else:
            self.failure = refusal

    def _record_end(self, state: MessageState.ValueType) -> None:
        requested = self._pending_end.state if self._pending_end is not None else MESSAGE_STATE_UNSPECIFIED
        if state == requested:
            self.ended = state
        elif state == MESSAGE_STATE_CANCELLED:
            self.failure = ReplyCancelled("The reply was cancelled by its readers")
        elif state == MESSAGE_STATE_EXPIRED:
            self.failure = ReplyExpired("The reply expired: the router received nothing for too long")
        else:
            name = MessageState.Name(state).removeprefix("MESSAGE_STATE_")
            self.failure = Fenced(f"Another worker has ended the reply {name}")


def _error_of(error: Error) -> TrunklineError:
    if error.code in _FENCED:
        return Fenced(error.message)
    return Refused(error.code, error.message, retryable=error.retryable, retry_after_ms=error.retry_after_ms)
