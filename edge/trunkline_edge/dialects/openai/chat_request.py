"""Requests for a chat completion, read and validated before anything is stored.

The last message is what the user says. Those before it are the conversation as the caller has it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple, TypeAlias, TypeVar

import msgspec
from trunkline.v1.message_pb2 import Part

from trunkline_edge.dialects.json_text import MAX_FRAME_VALUES, count_above, decode_json
from trunkline_edge.dialects.openai.content import Content, parts_of, text_of
from trunkline_edge.dialects.openai.errors import invalid

#: Roles that OpenAI has and agents do not: results of the caller's own tools.
_TOOL_ROLES = ("tool", "function")

Role: TypeAlias = Literal["system", "developer", "user", "assistant", "tool", "function"]


class ChatMessage(msgspec.Struct):
    """One message of a request."""

    role: Role
    content: Content | None = None
    tool_calls: list[Any] | None = None
    function_call: Any = None


class StreamOptions(msgspec.Struct):
    """`stream_options` of a request."""

    include_usage: bool | None = None


class ResponseFormat(msgspec.Struct):
    """`response_format` of a request."""

    type: str


class ChatBody(msgspec.Struct):
    """The fields of a request's body that mean something to agents. All others tune a model, and are ignored.

    https://platform.openai.com/docs/api-reference/chat/create
    """

    model: str
    messages: list[ChatMessage]
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    user: str | None = None
    n: int | None = None
    tools: list[Any] | None = None
    functions: list[Any] | None = None
    response_format: ResponseFormat | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    modalities: list[str] | None = None
    audio: dict[str, Any] | None = None
    web_search_options: dict[str, Any] | None = None


class CancelBody(msgspec.Struct):
    """The body of a request to cancel a reply."""

    model: str


class ChatRequest(NamedTuple):
    """A valid request."""

    model: str
    #: The content of the user's message.
    parts: Sequence[Part]
    #: The field that they are from.
    path: str
    #: The text of `parts`.
    text: str
    #: The messages before, as text.
    earlier: Sequence[dict[str, str]]
    stream: bool
    include_usage: bool
    #: The caller's name for its user; empty for none.
    user: str
    #: Equal for a request and its retries.
    digest: str


T = TypeVar("T")

_decode = msgspec.json.Decoder(ChatBody).decode
_decode_cancel = msgspec.json.Decoder(CancelBody).decode


def read_request(body: bytes) -> ChatRequest:
    """Read the body of a call. Raises Refused INVALID_ARGUMENT, which names the field."""
    fields = _read(_decode, body)
    _check_supported(fields)
    last = _last_message(fields.messages)
    path = f"messages[{last}].content"
    parts = parts_of(path, fields.messages[last].content)
    others = [message for index, message in enumerate(fields.messages) if index != last]
    options = fields.stream_options
    return ChatRequest(
        model=fields.model,
        parts=parts,
        path=path,
        text="".join([part.text.text for part in parts]),
        earlier=[{"role": message.role, "content": text_of(message.content)} for message in others],
        stream=bool(fields.stream),
        include_usage=options is not None and bool(options.include_usage),
        user=fields.user or "",
        digest=hashlib.sha256(body).hexdigest()[:32],
    )


def read_model(body: bytes) -> str:
    """Read the body of a cancel: the model. Raises Refused INVALID_ARGUMENT."""
    return _read(_decode_cancel, body).model


def _read(decode: Callable[[bytes], T], body: bytes) -> T:
    if values := count_above(body, MAX_FRAME_VALUES):
        raise invalid("body", f"has {values} values; at most {MAX_FRAME_VALUES} are allowed")
    try:
        return decode_json(decode, body)
    except msgspec.ValidationError as error:
        problem, _, path = str(error).partition(" - at `$")
        raise invalid(path.strip("`.") or "body", _lowered(problem)) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise invalid("body", f"is not valid JSON: {error}") from None


def _check_supported(body: ChatBody) -> None:
    """Raises Refused for what changes the answer in a way that agents cannot."""
    for name, problem, is_unsupported in _UNSUPPORTED:
        if is_unsupported(body):
            raise invalid(name, problem)
    for index, message in enumerate(body.messages):
        if message.role in _TOOL_ROLES or message.tool_calls or message.function_call is not None:
            raise invalid(f"messages[{index}]", "tools of the caller are not supported")


#: Field, problem, and whether a body has it.
_UNSUPPORTED: tuple[tuple[str, str, Callable[[ChatBody], bool]], ...] = (
    ("n", "must be 1: an agent gives one answer", lambda body: body.n not in (None, 1)),
    ("tools", "are not supported: an agent has its own", lambda body: bool(body.tools)),
    ("functions", "are not supported: an agent has its own", lambda body: bool(body.functions)),
    (
        "response_format",
        "must be of type text",
        lambda body: body.response_format is not None and body.response_format.type != "text",
    ),
    ("logprobs", "are not supported", lambda body: bool(body.logprobs or body.top_logprobs)),
    ("modalities", "must be text", lambda body: (body.modalities or ["text"]) != ["text"]),
    ("audio", "is not supported", lambda body: body.audio is not None),
    ("web_search_options", "are not supported", lambda body: body.web_search_options is not None),
    (
        "stream_options",
        "is only allowed with stream",
        lambda body: body.stream_options is not None and not body.stream,
    ),
)


def _last_message(messages: Sequence[ChatMessage]) -> int:
    """The index of the user's last message, which no answer follows."""
    for index in range(len(messages) - 1, -1, -1):
        if messages[index].role == "user":
            return index
        if messages[index].role == "assistant":
            raise invalid(f"messages[{index}].role", "the last message must be the user's")
    raise invalid("messages", "must contain a message with role user")


def _lowered(sentence: str) -> str:
    return sentence[:1].lower() + sentence[1:]
