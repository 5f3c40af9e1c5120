"""The exchange of a chat completion: sends the user's message and answers with the agent's reply."""

from __future__ import annotations

import msgspec
from trunkline.v1 import catalogue
from trunkline.v1.catalogue import Refused
from trunkline.v1.error_pb2 import Error
from trunkline.v1.frame_pb2 import ClientFrame, HistoryPageFrame, MessageFrame, ServerFrame
from trunkline.v1.message_pb2 import (
    MESSAGE_STATE_CANCELLED,
    MESSAGE_STATE_COMPLETE,
    MESSAGE_STATE_EXPIRED,
    ROLE_USER,
    Message,
    MessageState,
)

from trunkline_edge.dialects.dialect import Clock, HttpReply
from trunkline_edge.dialects.exchange import Exchange
from trunkline_edge.dialects.openai.callers import CONVERSATION, RETRY_WINDOW, Call
from trunkline_edge.dialects.openai.chat_request import ChatRequest
from trunkline_edge.dialects.openai.completion import CompletionStream, completion_of
from trunkline_edge.dialects.openai.errors import RenderedError, render, render_refusal
from trunkline_edge.dialects.reply_exchange import ReplyExchange
from trunkline_edge.dialects.reply_progress import Addition

NAME = "openai"

#: Name of the custom part with the messages that the caller sent before the last one.
EARLIER = "openai.messages"

#: Newest messages of the log among which an earlier attempt is looked for.
SEARCHED_MESSAGES = 20

_encode = msgspec.json.Encoder().encode


class ChatExchange(ReplyExchange):
    """Answers a call with the agent's reply, as a stream or whole.

    The log shows whether an earlier attempt has sent the message, and whether the conversation is new; only
    then the agent gets the messages before the last one. A caller who may not read it gets another reply, and
    the agent the last message alone.
    """

    name = NAME

    def __init__(self, request: ChatRequest, call: Call, clock: Clock, objection: Refused | None) -> None:
        """`objection` refuses the call once its caller is known to be one of the tenant's."""
        super().__init__(whole=not request.stream)
        self.headers = {CONVERSATION: call.chat}
        self.stream_headers = self.headers
        self._request = request
        self._call = call
        self._clock = clock
        self._objection = objection
        self._message = MessageFrame(id=call.client_id, parts=request.parts)
        self._is_sent = False
        self._chunks: CompletionStream | None = None
        if objection is not None:
            return
        if call.is_retry or (request.earlier and not call.is_new_chat):
            self.request_history().limit = SEARCHED_MESSAGES
        else:
            self._send(has_earlier=call.is_new_chat)

    # Sending

    def _send(self, *, has_earlier: bool) -> None:
        self._is_sent = True
        if has_earlier and self._request.earlier:
            custom = self._message.parts.add().custom
            custom.name = EARLIER
            custom.json = _encode(self._request.earlier).decode()
        self.requests.append(ClientFrame(message=self._message))

    def encode(self, frame: ServerFrame) -> bytes:
        """See Exchange."""
        is_forbidden = frame.HasField("error") and frame.error.code == catalogue.FORBIDDEN.code
        if is_forbidden and not self._is_sent and not self.is_decided:
            # The caller may not read the log.
            self._send(has_earlier=self._call.is_new_chat)
            return b""
        if frame.HasField("connected") and self._objection is not None:
            self.refused = self._objection
            return b""
        return super().encode(frame)

    def history_read(self, page: HistoryPageFrame) -> None:
        """See ReplyExchange. The first page is read before the message is sent."""
        if self._is_sent:
            super().history_read(page)
            return
        earlier = self._earlier_attempt(page) if self._call.is_retry else None
        if earlier is None:
            self._send(has_earlier=not page.messages)
            return
        self._is_sent = True
        self.message_id = earlier.id
        super().history_read(page)

    def _earlier_attempt(self, page: HistoryPageFrame) -> Message | None:
        """The message that an earlier attempt has sent; None if none has, or long ago."""
        since = (self._clock() - RETRY_WINDOW).timestamp()
        for message in reversed(page.messages):
            is_ours = message.author.role == ROLE_USER and message.client_id.startswith(self._call.prefix)
            if is_ours and message.created_at.seconds >= since:
                return message
        return None

    # The reply

    def opened(self, message: Message) -> bytes:
        """See ReplyExchange."""
        self._chunks = CompletionStream(message, self._request.model, self._request.include_usage)
        return self._chunks.begin()

    def added(self, addition: Addition) -> bytes:
        """See ReplyExchange."""
        assert self._chunks is not None
        match addition.kind:
            case "text":
                return self._chunks.text(addition.text)
            case "reasoning":
                return self._chunks.reasoning(addition.text)
        return self._chunks.part(addition.part) if addition.part is not None else b""

    def ended(self, state: MessageState.ValueType, error: Error, message: Message | None) -> bytes:
        """See ReplyExchange. Only a complete reply ends like one."""
        if state == MESSAGE_STATE_COMPLETE and self._chunks is not None:
            return self._chunks.end()
        return error_of(state, error).event

    def whole(self, message: Message) -> HttpReply:
        """See ReplyExchange."""
        if message.state == MESSAGE_STATE_COMPLETE:
            return HttpReply(200, completion_of(message, self._request.model), headers=self.headers)
        failed = error_of(message.state, message.error)
        return HttpReply(failed.status, failed.body, headers={**failed.headers, **self.headers})

    def interrupted(self, reason: Refused) -> bytes:
        """See Exchange."""
        return render_refusal(reason, reason.entry.http_status or 503).event


class EmptyExchange(Exchange):
    """Answers a front end's own request with an empty reply, once its caller is known to be the tenant's."""

    name = NAME

    def __init__(self, request: ChatRequest, call: Call, clock: Clock) -> None:
        super().__init__()
        self._request = request
        self._reply = Message(id=call.client_id, state=MESSAGE_STATE_COMPLETE)
        self._reply.created_at.FromDatetime(clock())

    def received(self, frame: ServerFrame) -> bytes:
        """See Exchange."""
        if not frame.HasField("connected"):
            return b""
        if not self._request.stream:
            self.answer = HttpReply(200, completion_of(self._reply, self._request.model))
            return b""
        chunks = CompletionStream(self._reply, self._request.model, self._request.include_usage)
        return self.end(chunks.begin() + chunks.end())


def error_of(state: MessageState.ValueType, error: Error) -> RenderedError:
    """The error for a reply that ended without being complete. A retry would get the same reply."""
    if state == MESSAGE_STATE_CANCELLED:
        return render("reply_cancelled", "The reply was cancelled", 409)
    if state == MESSAGE_STATE_EXPIRED:
        return render("reply_expired", "The agent stopped before its reply was complete", 503)
    return render(error.code or catalogue.INTERNAL.code, error.message or "The agent could not reply", 500)
