"""The streamed replies of one worker, by the numbers that it gave them."""

from __future__ import annotations

from typing import NamedTuple

from trunkline.v1.message_pb2 import MessageState

from trunkline_router.core.replies.streamed_message import StreamedMessage
from trunkline_router.core.values.topics import Position

#: Ended replies remembered for each worker, to answer what it still sends about them.
MAX_ENDED_REPLIES = 1000


class EndedReply(NamedTuple):
    """A reply that has ended, or (state OPEN) that another worker has taken over."""

    message_id: str
    state: MessageState.ValueType
    position: Position | None


class WorkerReplies:
    """A worker's current and recently ended replies."""

    __slots__ = ("current", "ended")

    def __init__(self) -> None:
        #: None while the opening is being committed. Bounded by the tenant's open messages.
        self.current: dict[int, StreamedMessage | None] = {}
        #: The latest MAX_ENDED_REPLIES, oldest first.
        self.ended: dict[int, EndedReply] = {}

    def __contains__(self, number: int) -> bool:
        return number in self.current or number in self.ended

    def end(self, number: int, ended: EndedReply) -> None:
        """The worker no longer produces this reply."""
        self.current.pop(number, None)
        self.ended[number] = ended
        if len(self.ended) > MAX_ENDED_REPLIES:
            del self.ended[next(iter(self.ended))]
