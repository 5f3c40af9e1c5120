"""UI messages: the request that sends one, and the messages of a chat as its page loads them."""

from __future__ import annotations

from collections.abc import Iterable
from hashlib import blake2b
from typing import Any, NamedTuple

import msgspec
from trunkline.v1 import catalogue
from trunkline.v1.catalogue import Refused
from trunkline.v1.frame_pb2 import MessageFrame
from trunkline.v1.message_pb2 import MESSAGE_STATE_OPEN, MESSAGE_STATE_RECALLED, ROLE_AGENT, Message, Part

from trunkline_edge.dialects.ai_sdk.ui_parts import UnfitPart, data_of, file_of, json_or_text, part_of
from trunkline_edge.dialects.codec import MAX_ID_CHARACTERS
from trunkline_edge.dialects.json_text import MAX_FRAME_VALUES, count_above, decode_json

#: Attributes of a message that was sent again: the id of the answer that it replaces, and of the message.
REGENERATES, EDITS = "ai_sdk.regenerates", "ai_sdk.edits"

#: Most values in the body of a request; the messages before the last are skipped, and yet each takes memory.
MAX_BODY_VALUES = 16 * MAX_FRAME_VALUES

SUBMIT, REGENERATE = "submit-message", "regenerate-message"


class _Body(msgspec.Struct, rename={"message_id": "messageId"}):
    """The request's body; all but the last message is skipped, as the log is the history."""

    id: str
    messages: list[msgspec.Raw] = []
    #: In place of `messages`, from clients that send the last one only.
    message: msgspec.Raw = msgspec.Raw()
    trigger: str = SUBMIT
    message_id: str | None = None


class _UiMessage(msgspec.Struct):
    id: str
    role: str
    parts: list[dict[str, Any]]


_decode_body = msgspec.json.Decoder(_Body).decode
_decode_message = msgspec.json.Decoder(_UiMessage).decode


class UiChatRequest(NamedTuple):
    """A request to answer a user's message."""

    chat: str
    message: MessageFrame
    #: Another answer is wanted in place of the chat's last one, which the request does not name; `regenerate`
    #: completes the message.
    replaces_last: bool


def read_request(body: bytes) -> UiChatRequest:
    """Read the body of a request. Raises Refused."""
    if values := count_above(body, MAX_BODY_VALUES):
        problem = f"has {values} values; at most {MAX_BODY_VALUES} are allowed; send the last message only"
        raise _invalid("body", problem)
    try:
        fields = decode_json(_decode_body, body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise _invalid("body", f"{error}"[:512]) from None
    last = bytes(fields.message) or (bytes(fields.messages[-1]) if fields.messages else b"")
    if not last:
        raise _invalid("messages", "must not be empty")
    if fields.trigger not in (SUBMIT, REGENERATE):
        raise _invalid("trigger", f"must be {SUBMIT} or {REGENERATE}")
    frame = _message_frame(last)
    regenerates = fields.trigger == REGENERATE
    if regenerates and fields.message_id:
        regenerate(frame, fields.message_id)
    elif fields.message_id:
        frame.attributes[EDITS] = frame.id
        frame.id = _derived(frame.id, _digest(b"".join(part.SerializeToString() for part in frame.parts)))
    return UiChatRequest(fields.id, frame, regenerates and not fields.message_id)


def regenerate(frame: MessageFrame, answer: str) -> None:
    """Make a message another one that replaces this answer; repeated for the same answer, it is the same."""
    frame.attributes[REGENERATES] = answer
    frame.id = _derived(frame.id, answer)


def _derived(ident: str, suffix: str) -> str:
    derived = f"{ident}~{suffix}"
    return derived if len(derived) <= MAX_ID_CHARACTERS else _digest(derived.encode())


def _digest(content: bytes) -> str:
    return blake2b(content, digest_size=16).hexdigest()


def _message_frame(text: bytes) -> MessageFrame:
    if values := count_above(text, MAX_FRAME_VALUES):
        raise _invalid("messages", f"the last has {values} values; at most {MAX_FRAME_VALUES} are allowed")
    try:
        message = decode_json(_decode_message, text)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise _invalid("messages", f"the last one cannot be read: {error}"[:512]) from None
    if message.role != "user":
        raise _invalid("messages", f"the last must have the role user, not {message.role[:64]}")
    if not message.id:
        raise _invalid("messages", "the last must have an id")
    frame = MessageFrame(id=message.id)
    try:
        frame.parts.extend(part for fields in message.parts if (part := part_of(fields)) is not None)
    except UnfitPart as unfit:
        raise _invalid("parts", str(unfit)) from None
    if not frame.parts:
        raise _invalid("parts", "the message has no content")
    return frame


def _invalid(field: str, problem: str) -> Refused:
    return catalogue.INVALID_ARGUMENT.refused(field=field, problem=problem)


def ui_messages(messages: Iterable[Message]) -> list[dict[str, Any]]:
    """The messages of a page of the log that a chat displays, in order.

    A message that was sent again replaces what it says it does. A reply that is still open is left out: the
    chat's stream brings it from its beginning.
    """
    shown: list[dict[str, Any]] = []
    for message in messages:
        if message.state in (MESSAGE_STATE_OPEN, MESSAGE_STATE_RECALLED):
            continue
        if answer := message.attributes.get(REGENERATES):
            _cut(shown, answer)
            continue
        is_answer = message.author.role == ROLE_AGENT
        ident = message.id if is_answer else message.client_id or message.id
        if edited := message.attributes.get(EDITS):
            _cut(shown, edited)
            ident = edited
        role = "assistant" if is_answer else "user"
        shown.append({"id": ident, "role": role, "parts": _ui_parts(message)})
    return shown


def _cut(shown: list[dict[str, Any]], ident: str) -> None:
    """Remove a message and all behind it."""
    for index, message in enumerate(shown):
        if message["id"] == ident:
            del shown[index:]
            return


def _ui_parts(message: Message) -> list[dict[str, Any]]:
    results = {part.tool_result.call_id: part for part in message.parts if part.HasField("tool_result")}
    return [shown for part in message.parts if (shown := _ui_part(part, results)) is not None]


def _ui_part(part: Part, results: dict[str, Part]) -> dict[str, Any] | None:
    kind = part.WhichOneof("content") or ""
    match kind:
        case "text":
            return {"type": "text", "text": part.text.text, "state": "done"}
        case "reasoning":
            return {"type": "reasoning", "text": part.reasoning.text, "state": "done"}
        case "image" | "audio" | "video" | "file":
            return file_of(getattr(part, kind), kind) or data_of(part)
        case "tool_call":
            return _tool(part, results.get(part.tool_call.call_id))
        case "tool_result":
            return None
    return data_of(part)


def _tool(call: Part, result: Part | None) -> dict[str, Any]:
    shown = {
        "type": "dynamic-tool",
        "toolName": call.tool_call.name,
        "toolCallId": call.tool_call.call_id,
        "input": json_or_text(call.tool_call.arguments),
        "providerExecuted": True,
    }
    if result is None:
        return {**shown, "state": "input-available"}
    output = result.tool_result.result
    if result.tool_result.failed:
        return {**shown, "state": "output-error", "errorText": output}
    return {**shown, "state": "output-available", "output": json_or_text(output)}
