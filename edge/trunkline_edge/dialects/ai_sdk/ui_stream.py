"""A reply as a UI message stream, version 1."""

from __future__ import annotations

from types import MappingProxyType
from typing import Any

import msgspec
from trunkline.v1.catalogue import Refused
from trunkline.v1.error_pb2 import Error
from trunkline.v1.frame_pb2 import ClientFrame, HistoryPageFrame, MessageFrame, ReplyStatusFrame
from trunkline.v1.message_pb2 import (
    MESSAGE_STATE_CANCELLED,
    MESSAGE_STATE_COMPLETE,
    MESSAGE_STATE_FAILED,
    MESSAGE_STATE_OPEN,
    ROLE_AGENT,
    ROLE_USER,
    Message,
    MessageState,
    Part,
)
from trunkline_runtime.refusals import FIRST_FINAL_CLOSE_CODE

from trunkline_edge.dialects.ai_sdk.ui_messages import REGENERATES, UiChatRequest, regenerate
from trunkline_edge.dialects.ai_sdk.ui_parts import data_of, file_of, json_or_text
from trunkline_edge.dialects.dialect import HttpReply
from trunkline_edge.dialects.reply_exchange import ReplyExchange
from trunkline_edge.dialects.reply_progress import TOOL_CALL, Addition

#: Heartbeats for which a page waits for an answer that has not begun; then status 204 reports none.
MAX_ATTACH_HEARTBEATS = 2

_DONE = b"data: [DONE]\n\n"
_encode = msgspec.json.Encoder().encode


def event(chunk: dict[str, Any]) -> bytes:
    """One chunk of the stream as a server-sent event."""
    return b"data: %b\n\n" % _encode(chunk)


class UiMessageStream(ReplyExchange):
    """Answers a message of a chat."""

    name = "ai_sdk"
    stream_headers = MappingProxyType({"x-vercel-ai-ui-message-stream": "v1"})

    def __init__(self, message: MessageFrame | None = None) -> None:
        super().__init__(message)
        self._parts = 0
        #: Of the last part: its kind, the beginning of a delta's event, and for a tool call what it is.
        self._kind = ""
        self._delta = b""
        self._call: dict[str, Any] = {}
        self._arguments: list[str] = []
        #: Ids of the calls so far.
        self._calls: set[str] = set()

    def opened(self, message: Message) -> bytes:
        """See ReplyExchange."""
        return event({"type": "start", "messageId": message.id})

    def added(self, addition: Addition) -> bytes:
        """See ReplyExchange."""
        if not addition.is_new:
            if self._kind == TOOL_CALL:
                self._arguments.append(addition.text)
            return b"%b%b}\n\n" % (self._delta, _encode(addition.text))
        before = self._end_part()
        self._kind = addition.kind
        self._parts += 1
        if addition.part is None:
            return before + self._begin_text()
        if addition.kind == TOOL_CALL:
            return before + self._begin_call(addition.part)
        return before + self._whole_part(addition.part)

    def _begin_text(self) -> bytes:
        ident = f"{self._parts}"
        self._delta = b'data: {"type":"%b-delta","id":"%b","delta":' % (self._kind.encode(), ident.encode())
        return event({"type": f"{self._kind}-start", "id": ident})

    def _begin_call(self, part: Part) -> bytes:
        call = part.tool_call
        ident = call.call_id or f"call-{self._parts}"
        self._calls.add(ident)
        self._arguments = []
        self._call = {
            "toolCallId": ident,
            "toolName": call.name,
            "dynamic": True,
            "providerExecuted": True,
        }
        self._delta = b'data: {"type":"tool-input-delta","toolCallId":%b,"inputTextDelta":' % _encode(ident)
        return event({"type": "tool-input-start", **self._call})

    def _end_part(self) -> bytes:
        match self._kind:
            case "":
                return b""
            case "text" | "reasoning":
                return event({"type": f"{self._kind}-end", "id": f"{self._parts}"})
            case "tool_call":
                call_input = json_or_text("".join(self._arguments))
                return event({"type": "tool-input-available", **self._call, "input": call_input})
        return b""

    def _whole_part(self, part: Part) -> bytes:
        kind = part.WhichOneof("content") or ""
        match kind:
            case "image" | "audio" | "video" | "file":
                return event(file_of(getattr(part, kind), kind) or data_of(part))
            case "tool_result" if part.tool_result.call_id in self._calls:
                result = part.tool_result
                fields: dict[str, Any] = {"toolCallId": result.call_id, "dynamic": True}
                if result.failed:
                    fields |= {"type": "tool-output-error", "errorText": result.result}
                else:
                    fields |= {"type": "tool-output-available", "output": json_or_text(result.result)}
                return event({**fields, "providerExecuted": True})
        return event(data_of(part))

    def retrying(self, status: ReplyStatusFrame) -> bytes:
        """See ReplyExchange: a part that is passed to the page's `onData` and not kept."""
        content = {"attempts": status.attempts}
        return event({"type": "data-retrying", "data": content, "transient": True})

    def ended(self, state: MessageState.ValueType, error: Error, message: Message | None) -> bytes:
        """See ReplyExchange."""
        if state == MESSAGE_STATE_COMPLETE:
            last = event({"type": "finish", "finishReason": "stop"})
        elif state == MESSAGE_STATE_CANCELLED:
            last = event({"type": "abort"})
        elif state == MESSAGE_STATE_FAILED:
            last = event({"type": "error", "errorText": error.message or "The reply failed"})
        else:
            last = event({"type": "error", "errorText": "The reply was not completed"})
        return self._end_part() + last + _DONE

    def interrupted(self, reason: Refused) -> bytes:
        """See Exchange. A client that is cut off may resume; an error is final."""
        if reason.entry.close_code < FIRST_FINAL_CLOSE_CODE:
            return b""
        return event({"type": "error", "errorText": str(reason)}) + _DONE


class RegeneratedStream(UiMessageStream):
    """Answers a message again, in place of the last answer of the chat, which the log names.

    While that answer, or another that replaced it, is being written, it is the one that is wanted.
    """

    def __init__(self, request: UiChatRequest) -> None:
        super().__init__()
        self._message = request.message
        self._is_sent = False
        self.request_history()

    def history_read(self, page: HistoryPageFrame) -> None:
        """See ReplyExchange. The first page names the answer; another is for a repeated message."""
        if self._is_sent:
            super().history_read(page)
            return
        self._is_sent = True
        again = {message.id for message in page.messages if REGENERATES in message.attributes}
        answers = [message for message in page.messages if message.author.role == ROLE_AGENT]
        last = answers[-1] if answers else Message()
        if last.state == MESSAGE_STATE_OPEN and last.reply_to in again:
            self.attach(last.id)
            return
        regenerate(self._message, last.id)
        self.requests.append(ClientFrame(message=self._message))


class ResumedStream(UiMessageStream):
    """The reply that is being written, from its beginning; status 204 if there is none.

    The reply to a message that has none yet counts, too: the page waits for it, for a while.
    """

    greeting = b""

    def __init__(self) -> None:
        super().__init__()
        self._has_caught_up = False
        self._heartbeats = 0

    def caught_up(self) -> bytes:
        """See Exchange. After a lost link everything comes again."""
        if self._has_caught_up:
            return b""
        self._has_caught_up = self.is_accepted = True
        is_open = [reply.id for reply in self._early_replies() if reply.state == MESSAGE_STATE_OPEN]
        if is_open:
            self.attach(is_open[-1])
        else:
            self.request_history()
        return self.take_events()

    def _early_replies(self) -> list[Message]:
        return [
            message
            for message in self.early_messages()
            if message.author.role == ROLE_AGENT and message.address.HasField("conversation")
        ]

    def history_read(self, page: HistoryPageFrame) -> None:
        """See ReplyExchange: wait for the reply to the last message unless it has one."""
        last = page.messages[-1] if page.messages else Message()
        if last.author.role == ROLE_USER or last.state == MESSAGE_STATE_OPEN:
            self.await_reply(last.reply_to or last.id)
        elif replies := self._early_replies():
            # One began and ended while the log was read.
            self.attach(replies[-1].id)
        else:
            self.answer = HttpReply(204, None)

    def heartbeat(self) -> bytes:
        """See Codec."""
        self._heartbeats += 1
        if not (self.has_begun or self.is_decided) and self._heartbeats >= MAX_ATTACH_HEARTBEATS:
            self.answer = HttpReply(204, None)
        return super().heartbeat()
