"""Accumulation of deltas to a message. Pure."""

from __future__ import annotations

from typing import Literal

from trunkline.v1.frame_pb2 import DeltaFrame
from trunkline.v1.message_pb2 import Delta, Message, Part, ReasoningPart, TextPart, ToolCallPart

#: Kinds of parts that grow, and the field that does.
_GROWING: dict[str, str] = {"text": "text", "reasoning": "text", "tool_call": "arguments"}


class Accumulator:
    """A message that grows by deltas.

    Additions to its last part are joined only when `message` is read, so a long text costs no more than
    its length.
    """

    def __init__(self, message: Message) -> None:
        """Takes the message over: the caller must not change it any more."""
        self._message = message
        self._tail: list[str] = []
        self._last = _kind(message)

    @property
    def message(self) -> Message:
        """The message so far. It grows with the accumulator: copy it to keep it."""
        if self._tail:
            part = getattr(self._message.parts[-1], self._last)
            field = _GROWING[self._last]
            setattr(part, field, getattr(part, field) + "".join(self._tail))
            self._tail.clear()
        return self._message

    @property
    def id(self) -> str:
        """The message's id."""
        return self._message.id

    def add(self, delta: Delta | DeltaFrame) -> None:
        """Adds a delta; one with a kind of content that is newer than this client adds nothing."""
        match delta.WhichOneof("content"):
            case "text":
                self._grow("text", delta.text)
            case "reasoning":
                self._grow("reasoning", delta.reasoning)
            case "part":
                self._append(delta.part)
            case _:
                pass

    def _grow(self, kind: Literal["text", "reasoning"], text: str) -> None:
        if self._last != kind:
            self._new_part(Part(text=TextPart()) if kind == "text" else Part(reasoning=ReasoningPart()), kind)
        self._tail.append(text)

    def _append(self, part: Part) -> None:
        kind = part.WhichOneof("content") or ""
        if kind == self._last == "tool_call":
            call = self._message.parts[-1].tool_call
            if call.call_id == part.tool_call.call_id:
                self._tail.append(part.tool_call.arguments)
                return
        self._new_part(part, kind)

    def _new_part(self, part: Part, kind: str) -> None:
        self.message.parts.append(part)
        self._last = kind


def difference(before: Message, after: Message) -> list[Delta] | None:
    """The deltas that turn `before` into `after`; None if `after` is no continuation of it.

    Their indexes are meaningless.
    """
    found: list[Delta] = []
    if len(after.parts) < len(before.parts):
        return None
    for number, part in enumerate(after.parts):
        if number >= len(before.parts):
            found.append(_addition(part, after.parts[number - 1] if number else Part()))
        elif part != before.parts[number]:
            grown = _growth(before.parts[number], part) if number == len(before.parts) - 1 else None
            if grown is None:
                return None
            found.append(grown)
    return found


def _addition(part: Part, previous: Part) -> Delta:
    """A part as a delta: as text, unless that would extend the previous part."""
    kind = part.WhichOneof("content")
    if kind == "text" and previous.WhichOneof("content") != kind:
        return Delta(text=part.text.text)
    if kind == "reasoning" and previous.WhichOneof("content") != kind:
        return Delta(reasoning=part.reasoning.text)
    return Delta(part=part)


def _growth(before: Part, after: Part) -> Delta | None:
    kind = after.WhichOneof("content") or ""
    if kind not in _GROWING or before.WhichOneof("content") != kind:
        return None
    was, now = (getattr(getattr(each, kind), _GROWING[kind]) for each in (before, after))
    if not now.startswith(was):
        return None
    new = now[len(was) :]
    if kind == "tool_call":
        if before.tool_call.call_id != after.tool_call.call_id:
            return None
        return Delta(part=Part(tool_call=ToolCallPart(call_id=after.tool_call.call_id, arguments=new)))
    return Delta(text=new) if kind == "text" else Delta(reasoning=new)


def _kind(message: Message) -> str:
    return (message.parts[-1].WhichOneof("content") or "") if message.parts else ""
