"""One streamed reply on its way to the log, over one stream to the router after another. Pure."""

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

#: What was written cannot be added, however often it is tried; what is there can be ended.
_REFUSED_FOR_GOOD = frozenset({"MESSAGE_TOO_LARGE", "INVALID_ARGUMENT"})

_FENCED = frozenset({"PRODUCER_FENCED", "DELIVERY_NOT_HELD"})


class ReplyPhase(Enum):
    """Where a line is on the present stream."""

    #: Not on it: it broke, or the delivery has not come back yet.
    AWAY = 0
    OPENING = 1
    OPEN = 2
    #: The end is written.
    ENDING = 3
    #: The end was refused for now.
    END_REFUSED = 4


class ReplyState:
    """A reply from its opening to its end.

    Whoever has it opens it on a stream with `open`, passes it what the router says, and writes what
    `deltas` and `end` give. It is over once `ended` or `failure` is set.
    """

    def __init__(self, request: OpenReply, said: Callable[[], Message]) -> None:
        """`said` is the message with all that was ever added to `outgoing`, and what was there before."""
        self.outgoing = DeltaBuffer()
        self._said = said
        self.phase = ReplyPhase.AWAY
        #: As it was when it was first opened.
        self.message: Message | None = None
        self.ended: MessageState.ValueType = MESSAGE_STATE_UNSPECIFIED
        #: Why it is over without having been ended from here.
        self.failure: TrunklineError | None = None
        #: Why nothing more can be added, though it can still be ended.
        self.refusal: Refused | None = None
        self._request = request
        self._key = request.key
        self._openings = 1
        self._end: EndReply | None = None

    def __repr__(self) -> str:
        return f"<ReplyState {self._request.key} {self.phase.name} {self.outgoing!r}>"

    @property
    def is_over(self) -> bool:
        """Whether nothing is left to be done."""
        return self.failure is not None or self.ended != MESSAGE_STATE_UNSPECIFIED

    @property
    def must_open(self) -> bool:
        """Whether it waits for `open`."""
        return self.phase is ReplyPhase.AWAY and not self.is_over

    @property
    def has_mail(self) -> bool:
        """Whether `deltas` or `end` has something."""
        return self.phase is ReplyPhase.OPEN and (self.outgoing.has_unwritten or self._end is not None)

    @property
    def owes_end(self) -> bool:
        """Whether an end was asked for that is still to be written."""
        return self._end is not None and not self.is_over and self.phase is not ReplyPhase.ENDING

    # What its owner wants.

    def finish(self, state: MessageState.ValueType, error: Error | None) -> None:
        """Ends it after all that was added; the first call counts."""
        if self._end is None:
            self._end = EndReply(state=state, error=error)

    def give_up(self, failure: TrunklineError) -> None:
        """It is in other hands, or nobody wants it."""
        if not self.is_over:
            self.failure = failure

    # What is written.

    def open(self, number: int) -> OpenReply:
        """Opens it on the present stream, under a number of that."""
        self.phase = ReplyPhase.OPENING
        request = OpenReply()
        request.CopyFrom(self._request)
        request.reply = number
        return request

    def deltas(self, max_bytes: int, max_items: int) -> list[Delta]:
        """Takes what is to be written next."""
        return self.outgoing.take(max_bytes, max_items) if self.phase is ReplyPhase.OPEN else []

    def end(self, number: int) -> EndReply | None:
        """Takes the end, once it is due: asked for, and everything before it written."""
        if self.phase is not ReplyPhase.OPEN or self._end is None or self.outgoing.has_unwritten:
            return None
        self.phase = ReplyPhase.ENDING
        self._end.reply = number
        self._end.next_index = self.outgoing.next_index
        return self._end

    def try_again(self) -> None:
        """An end that was refused for now is due again."""
        if self.phase is ReplyPhase.END_REFUSED:
            self.phase = ReplyPhase.OPEN

    def stream_lost(self) -> None:
        """The stream broke."""
        self.phase = ReplyPhase.AWAY

    # What the router says.

    def on_opened(self, told: ReplyOpened) -> None:
        """It was opened, or taken up again, or not."""
        if self.is_over:
            return
        if told.HasField("error"):
            self.failure = _refused(told.error)
        elif self.message is None:
            self._opened_first(told.message)
        else:
            self._opened_again(told.message)

    def _opened_first(self, message: Message) -> None:
        match message.state:
            case MessageState.MESSAGE_STATE_OPEN:
                self.phase = ReplyPhase.OPEN
                self.message = message
                self.outgoing.begin(message.next_index)
            case MessageState.MESSAGE_STATE_EXPIRED:
                # Nothing can be added to what an earlier attempt left behind: begin another one.
                self._openings += 1
                self._request.key = f"{self._key}~{self._openings}"
                self.phase = ReplyPhase.AWAY
            case MessageState.MESSAGE_STATE_CANCELLED:
                self.failure = ReplyCancelled(f"Message {message.id} was cancelled")
            case _:
                self.failure = AlreadyAnswered(message)

    def _opened_again(self, message: Message) -> None:
        """Go on from what the log holds, and not from its number of deltas: another worker may have had
        the reply meanwhile, and divided the same words otherwise, or said other ones."""
        if message.state != MESSAGE_STATE_OPEN:
            self._over(message.state)
            return
        said = self._said()
        # Its author has yet to hear that it was opened at all.
        mine = said if said.id == message.id else self.message
        missing = difference(message, mine or Message())
        if missing is None:
            self.failure = Fenced(f"Somebody else has added to message {message.id}")
            return
        self.outgoing.begin_again(message.next_index, [] if self.refusal else missing)
        self.phase = ReplyPhase.OPEN

    def on_progress(self, told: ReplyProgress) -> None:
        """It has come so far."""
        self.outgoing.durable(told.durable_index)
        if self.is_over or not told.HasField("error"):
            return
        refusal = _refused(told.error)
        if isinstance(refusal, Refused) and refusal.code == "DELTA_GAP":
            if self.phase is not ReplyPhase.OPENING and self.outgoing.go_on_from(told.next_index):
                self.phase = ReplyPhase.OPEN
        elif isinstance(refusal, Refused) and refusal.code in _REFUSED_FOR_GOOD:
            self.refusal = refusal
            self.outgoing.drop_unwritten()
            self._end_otherwise(refusal)
        else:
            self.failure = refusal

    def _end_otherwise(self, refusal: Refused) -> None:
        """It cannot become complete, should that have been asked for already."""
        if self._end is None or self._end.state != MESSAGE_STATE_COMPLETE:
            return
        error = Error(code=refusal.code, message=refusal.message)
        self._end = EndReply(state=MESSAGE_STATE_FAILED, error=error)
        if self.phase in (ReplyPhase.ENDING, ReplyPhase.END_REFUSED):
            self.phase = ReplyPhase.OPEN

    def on_ended(self, told: ReplyEnded) -> None:
        """It has ended, or an end was refused."""
        if self.is_over:
            return
        if not told.HasField("error"):
            self._over(told.state)
            return
        refusal = _refused(told.error)
        if isinstance(refusal, Refused) and refusal.retryable:
            self.phase = ReplyPhase.END_REFUSED
        else:
            self.failure = refusal

    def _over(self, state: MessageState.ValueType) -> None:
        asked = self._end.state if self._end is not None else MESSAGE_STATE_UNSPECIFIED
        if state == asked:
            self.ended = state
        elif state == MESSAGE_STATE_CANCELLED:
            self.failure = ReplyCancelled("The reply was cancelled by its readers")
        elif state == MESSAGE_STATE_EXPIRED:
            self.failure = ReplyExpired("The router heard nothing of the reply for too long")
        else:
            name = MessageState.Name(state).removeprefix("MESSAGE_STATE_")
            self.failure = Fenced(f"Somebody else has ended the reply; it is {name}")


def _refused(error: Error) -> TrunklineError:
    if error.code in _FENCED:
        return Fenced(error.message)
    return Refused(error.code, error.message, retryable=error.retryable, retry_after_ms=error.retry_after_ms)
