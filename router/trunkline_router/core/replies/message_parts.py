"""Parts of a streamed message, built from its deltas."""

from __future__ import annotations

from collections.abc import Iterable

from trunkline.v1.message_pb2 import Part


class PartsBuilder:
    """Parts of a message under construction; each delta is joined to the part that it continues."""

    __slots__ = ("_kind", "_parts", "_tail")

    def __init__(self, parts: Iterable[Part] = ()) -> None:
        self._parts = list(parts)
        #: Text at the end, in pieces, and its kind: `text`, `reasoning`, or "" if the last part is neither.
        self._tail: list[str] = []
        self._kind = ""

    def __len__(self) -> int:
        return len(self._parts) + bool(self._tail)

    def add_text(self, kind: str, text: str) -> None:
        """Add `text` or `reasoning`."""
        if kind != self._kind:
            self._close()
            self._kind = kind
        if text or not self._tail:
            self._tail.append(text)

    def continues(self, kind: str) -> bool:
        """True if more of this kind would not start another part."""
        return kind == self._kind

    def add_part(self, part: Part) -> None:
        """Add a whole part; a tool call with the id of the last one extends its arguments."""
        self._close()
        if part.HasField("tool_call") and self._parts and self._parts[-1].HasField("tool_call"):
            last = self._parts[-1].tool_call
            if last.call_id == part.tool_call.call_id:
                last.arguments += part.tool_call.arguments
                return
        kind = part.WhichOneof("content") or ""
        if kind == "text" or kind == "reasoning":
            self._kind = kind
            self._tail.append(part.text.text if kind == "text" else part.reasoning.text)
            return
        # A copy, as the delta goes to the log unchanged.
        own = Part()
        own.CopyFrom(part)
        self._parts.append(own)

    def all(self) -> list[Part]:
        """Return the parts so far."""
        return [*self._parts, self._text_part()] if self._tail else list(self._parts)

    def _close(self) -> None:
        if self._tail:
            self._parts.append(self._text_part())
            self._tail = []
        self._kind = ""

    def _text_part(self) -> Part:
        if len(self._tail) > 1:
            self._tail = ["".join(self._tail)]
        part = Part()
        getattr(part, self._kind).text = self._tail[0]
        return part
