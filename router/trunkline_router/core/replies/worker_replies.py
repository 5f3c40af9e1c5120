"""Streamed replies of one worker, by the numbers that it gave them."""

from __future__ import annotations

from typing import NamedTuple

from trunkline.v1 import catalogue
from trunkline.v1.catalogue import Refused
from trunkline.v1.message_pb2 import MessageState

from trunkline_router.core.replies.streamed_message import StreamedMessage
from trunkline_router.core.values.message_states import OPEN
from trunkline_router.core.values.topics import Position

#: Ended replies of a worker whose state is remembered.
MAX_ENDED_REPLIES = 1000


class EndedReply(NamedTuple):
    """A reply that has ended, or that another producer has taken over (`state` is OPEN then)."""

    message_id: str
    state: MessageState.ValueType
    position: Position | None


class WorkerReplies:
    """Open and ended replies of one worker.

    Open ones are bounded by the tenant's limit `open_messages`; of ended ones the last
    MAX_ENDED_REPLIES are kept.
    """

    __slots__ = ("current", "ended")

    def __init__(self) -> None:
        #: By number; None while the reply is on its way to the log.
        self.current: dict[int, StreamedMessage | None] = {}
        #: By number, the latest last.
        self.ended: dict[int, EndedReply] = {}

    def __contains__(self, number: int) -> bool:
        return number in self.current or number in self.ended

    def end(self, number: int, ended: EndedReply) -> None:
        """Record that a reply has ended, or has another producer."""
        self.current.pop(number, None)
        self.ended[number] = ended
        if len(self.ended) > MAX_ENDED_REPLIES:
            del self.ended[next(iter(self.ended))]

    def cancel_opening(self, number: int) -> None:
        """Forget a reply that was not opened."""
        if self.current.get(number, self) is None:
            del self.current[number]

    def closed_error(self, number: int) -> Refused:
        """Return the error for an addition to a reply that is not open."""
        known = self.ended.get(number)
        if known is None:
            return catalogue.REPLY_NOT_OPENED.refused(reply=number)
        if known.state == OPEN:
            return catalogue.PRODUCER_FENCED.refused(message_id=known.message_id, producer="another worker")
        return message_ended(known.message_id, known.state)


def message_ended(message_id: str, state: MessageState.ValueType) -> Refused:
    """Return the error for an addition to a message that has ended."""
    name = MessageState.Name(state).removeprefix("MESSAGE_STATE_").lower()
    return catalogue.MESSAGE_ENDED.refused(message_id=message_id, state=name)
