"""Sources of a `ReplyStream`: a message that it sends, or an open message that is followed."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping

from trunkline.v1.address_pb2 import Conversation, Position
from trunkline.v1.message_pb2 import Message

from trunkline_client.builders import Content
from trunkline_client.client_requests import ClientRequests
from trunkline_client.events import CancelResult, Event
from trunkline_client.reply_tracker import ReplyTracker
from trunkline_client.tracked_reply import TrackedReply

#: Messages to search for a reply that may have begun without this client receiving it.
_SEARCHED_MESSAGES = 100
_CANCEL_TIMEOUT_S = 10.0


class ReplySource(ABC):
    """Starts to follow one reply, and asks the edge about it."""

    def __init__(
        self, tracker: ReplyTracker, requests: ClientRequests, emit: Callable[[list[Event]], None]
    ) -> None:
        self.reply = TrackedReply()
        self._tracker = tracker
        self._requests = requests
        self._emit = emit

    @abstractmethod
    async def begin(self) -> None:
        """Starts to follow the reply."""

    @abstractmethod
    async def cancel(self) -> CancelResult:
        """Cancels the reply, whether or not it has begun."""

    @abstractmethod
    async def catch_up(self) -> None:
        """Reads from the log what may have been missed of the reply."""

    def leave(self) -> None:
        """Stops following the reply."""
        self._emit(self._tracker.leave(self.reply))


class SentMessageSource(ReplySource):
    """Follows the first reply to a message that `begin` sends."""

    def __init__(
        self,
        tracker: ReplyTracker,
        requests: ClientRequests,
        emit: Callable[[list[Event]], None],
        content: Content,
        attributes: Mapping[str, str] | None,
        conversation: str | Conversation | None,
        message_id: str,
        timeout_s: float,
    ) -> None:
        super().__init__(tracker, requests, emit)
        self._content = content
        self._attributes = attributes
        self._conversation = conversation
        self._message_id = message_id
        self._timeout_s = timeout_s

    async def begin(self) -> None:
        """Sends the message."""
        self._tracker.begin_question(self.reply)
        ack = await self._requests.send(
            self._content,
            attributes=self._attributes,
            conversation=self._conversation,
            message_id=self._message_id,
            timeout_s=self._timeout_s,
        )
        self._emit(self._tracker.set_question_id(self.reply, ack.message_id))

    async def cancel(self) -> CancelResult:
        """Cancels the reply, or those to come if there is none yet."""
        reply_id = "" if self.reply.whole is None else self.reply.whole.id
        return await self._requests.cancel(reply_id, self._message_id, self._conversation, _CANCEL_TIMEOUT_S)

    async def catch_up(self) -> None:
        """Reads the newest messages of the conversation."""
        page = await self._requests.read_history(self._conversation, limit=_SEARCHED_MESSAGES)
        self._tracker.merge_history(page.messages)


class MessageSource(ReplySource):
    """Follows an open message that the application has received."""

    def __init__(
        self,
        tracker: ReplyTracker,
        requests: ClientRequests,
        emit: Callable[[list[Event]], None],
        message: Message,
    ) -> None:
        super().__init__(tracker, requests, emit)
        self._message = message
        self._conversation = (
            message.address.conversation if message.address.HasField("conversation") else None
        )

    async def begin(self) -> None:
        """Follows the message. Raises ValueError if it is followed already."""
        self._tracker.follow(self.reply, self._message)

    async def cancel(self) -> CancelResult:
        """Cancels the message."""
        return await self._requests.cancel(self._message.id, "", self._conversation, _CANCEL_TIMEOUT_S)

    async def catch_up(self) -> None:
        """Reads the message."""
        position = self._message.position
        before = Position(epoch=position.epoch, seq=position.seq - 1)
        page = await self._requests.read_history(self._conversation, after=before, limit=1)
        self._tracker.merge_history(page.messages)
