"""Progress of one reply in a stream that can add to what was written, and change nothing of it.

The reply comes as snapshots and deltas. After a lost link, and when another worker takes it up, it comes
again from an earlier point; what was written before is skipped.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple
from zlib import crc32

from trunkline.v1.frame_pb2 import DeltaFrame
from trunkline.v1.message_pb2 import Message, Part, ReasoningPart, TextPart

TEXT, REASONING, TOOL_CALL = "text", "reasoning", "tool_call"
#: Kinds of parts that deltas extend.
_GROWING = frozenset({TEXT, REASONING, TOOL_CALL})

_EMPTY = {TEXT: Part(text=TextPart()), REASONING: Part(reasoning=ReasoningPart())}


class Addition(NamedTuple):
    """Something to write behind everything written before."""

    #: The field of Part.
    kind: str
    #: True if it begins a part; otherwise it extends the last one.
    is_new: bool
    #: For text, reasoning and the arguments of a tool call.
    text: str
    #: The part that begins, unless it is text or reasoning.
    part: Part | None


class ReplyConflict(Exception):
    """The reply is not what was written of it, so the stream cannot go on."""


class _WrittenPart:
    __slots__ = ("characters", "crc", "kind")

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.characters = 0
        #: Of the text.
        self.crc = 0

    def add(self, text: str) -> None:
        self.characters += len(text)
        self.crc = crc32(text.encode(), self.crc)


class ReplyProgress:
    """Turns snapshots and deltas of one reply into additions, which are passed to `write` in order."""

    __slots__ = ("_call_id", "_characters", "_kind", "_parts", "_write", "_written")

    def __init__(self, write: Callable[[Addition], None]) -> None:
        self._write = write
        self._written: list[_WrittenPart] = []
        # End of the reply as received: parts, and kind, characters and call of the last one.
        self._parts = 0
        self._kind = ""
        self._characters = 0
        self._call_id = ""

    def snapshot(self, message: Message) -> None:
        """Apply the reply as it is now. Raises ReplyConflict."""
        self._parts, self._kind, self._characters = 0, "", 0
        for part in message.parts:
            self._begin(part)

    def delta(self, delta: DeltaFrame) -> None:
        """Apply the delta that follows. Raises ReplyConflict."""
        kind = delta.WhichOneof("content") or ""
        if kind == "part":
            part = delta.part
            call_id = part.tool_call.call_id if part.HasField("tool_call") else ""
            if call_id and self._kind == TOOL_CALL and call_id == self._call_id:
                self._extend(part.tool_call.arguments)
            else:
                self._begin(part)
        elif kind:
            if self._kind != kind:
                self._begin(_EMPTY[kind])
            self._extend(getattr(delta, kind))

    def _begin(self, part: Part) -> None:
        kind = part.WhichOneof("content") or ""
        index, self._parts, self._kind, self._characters = self._parts, self._parts + 1, kind, 0
        self._call_id = part.tool_call.call_id if kind == TOOL_CALL else ""
        if index < len(self._written):
            if self._written[index].kind != kind:
                raise ReplyConflict
        else:
            self._written.append(_WrittenPart(kind))
            self._write(Addition(kind, True, "", None if kind in (TEXT, REASONING) else part))
        if kind in _GROWING:
            self._extend(_text_of(part, kind))

    def _extend(self, text: str) -> None:
        written = self._written[self._parts - 1]
        start, self._characters = self._characters, self._characters + len(text)
        known = written.characters - start
        if known > 0:
            if not start and len(text) >= known and crc32(text[:known].encode()) != written.crc:
                raise ReplyConflict
            text = text[known:]
        if text:
            if self._parts != len(self._written):
                raise ReplyConflict
            written.add(text)
            self._write(Addition(self._kind, False, text, None))


def _text_of(part: Part, kind: str) -> str:
    if kind == TOOL_CALL:
        return part.tool_call.arguments
    return part.text.text if kind == TEXT else part.reasoning.text
