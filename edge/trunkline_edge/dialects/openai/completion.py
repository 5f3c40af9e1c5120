"""Chat completions: an agent's reply as one JSON body, or as the chunks of a stream."""

from __future__ import annotations

from typing import Any

import msgspec
from trunkline.v1.message_pb2 import Message, Part

#: Name of the custom part by which a worker gives the usage of a reply, see docs/dialects/openai.md.
USAGE = "usage"

#: Counts of tokens in a usage.
_TOKENS = ("prompt_tokens", "completion_tokens")
_MAX_TOKENS = 2**53

#: Follows the last chunk of a reply that is complete, and nothing else.
DONE = b"data: [DONE]\n\n"

_encode = msgspec.json.Encoder().encode


def completion_id(message_id: str) -> str:
    """The id of a completion, from the id of the reply."""
    return f"chatcmpl-{message_id}"


def message_id_of(completion: str) -> str:
    """The id of the reply, from the id of a completion."""
    return completion.removeprefix("chatcmpl-")


class CompletionStream:
    """The chunks of one reply. Call `begin` first, and `end` only for a reply that is complete."""

    __slots__ = ("_after", "_head", "_include_usage", "_prefix", "usage")

    def __init__(self, reply: Message, model: str, include_usage: bool) -> None:
        self._include_usage = include_usage
        self.usage: dict[str, int] | None = None
        # All chunks share their first and last bytes.
        head = {
            "id": completion_id(reply.id),
            "object": "chat.completion.chunk",
            "created": reply.created_at.seconds,
            "model": model,
        }
        self._head = b"data: " + _encode(head)[:-1]
        self._prefix = self._head + b',"choices":[{"index":0,"delta":{'
        # With usage in the last chunk, all others have the field, too.
        self._after = (b',"usage":null' if include_usage else b"") + b"}\n\n"

    def begin(self) -> bytes:
        """The first chunk, with the role."""
        return self._chunk(b'"role":"assistant","content":""')

    def part(self, part: Part) -> bytes:
        """The chunk of a part that is neither text nor reasoning; empty for none."""
        self.usage = usage_in(part) or self.usage
        return self.text(link_to(part))

    def text(self, text: str) -> bytes:
        """The chunk of a piece of text; empty for none."""
        return self._chunk(b'"content":' + _encode(text)) if text else b""

    def reasoning(self, text: str) -> bytes:
        """The chunk of a piece of reasoning; empty for none."""
        return self._chunk(b'"reasoning_content":' + _encode(text)) if text else b""

    def end(self) -> bytes:
        """The last chunks: the reason to finish, and the usage if it is wanted and known."""
        usage = b""
        if self._include_usage and self.usage is not None:
            usage = self._head + b',"choices":[],"usage":' + _encode(self.usage) + b"}\n\n"
        return self._chunk(b"", finish=b'"stop"') + usage + DONE

    def _chunk(self, delta: bytes, finish: bytes = b"null") -> bytes:
        return b"".join(
            (self._prefix, delta, b'},"logprobs":null,"finish_reason":', finish, b"}]", self._after)
        )


def completion_of(reply: Message, model: str) -> dict[str, Any]:
    """The body for a reply that is complete."""
    texts, reasoning, usage = [], [], None
    for part in reply.parts:
        match part.WhichOneof("content"):
            case "text":
                texts.append(part.text.text)
            case "reasoning":
                reasoning.append(part.reasoning.text)
            case _:
                usage = usage_in(part) or usage
                texts.append(link_to(part))
    message: dict[str, Any] = {"role": "assistant", "content": "".join(texts), "refusal": None}
    if any(reasoning):
        message["reasoning_content"] = "".join(reasoning)
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": "stop"}
    body: dict[str, Any] = {
        "id": completion_id(reply.id),
        "object": "chat.completion",
        "created": reply.created_at.seconds,
        "model": model,
        "choices": [choice],
    }
    if usage is not None:
        body["usage"] = usage
    return body


def usage_in(part: Part) -> dict[str, int] | None:
    """The usage in a worker's custom part; None if it is another part, or its counts are not valid."""
    if not part.HasField("custom") or part.custom.name != USAGE:
        return None
    data = part.custom.data
    usage = {}
    for name in _TOKENS:
        value = data.fields[name].number_value if name in data.fields else 0
        if not 0 <= value <= _MAX_TOKENS:
            return None
        usage[name] = int(value)
    usage["total_tokens"] = sum(usage.values())
    return usage


def link_to(part: Part) -> str:
    """Media of a reply that have a URL, in Markdown, which chat front ends render; empty for other parts."""
    kind = part.WhichOneof("content")
    if kind not in ("image", "audio", "video", "file"):
        return ""
    media = getattr(part, kind)
    if not media.url:
        return ""
    # Brackets and spaces would end the link.
    name = (media.name or kind).replace("[", "(").replace("]", ")")
    url = media.url.replace(" ", "%20").replace("(", "%28").replace(")", "%29")
    return f"{'!' if kind == 'image' else ''}[{name}]({url})"
