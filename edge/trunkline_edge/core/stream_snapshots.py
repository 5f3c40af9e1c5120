"""What was said so far in open messages, for those who are not shown deltas."""

from __future__ import annotations

from trunkline.v1.frame_pb2 import DeltaFrame
from trunkline.v1.message_pb2 import CHANGE_KIND_ENDED, Change, Message, Part


class StreamSnapshots:
    """The open messages of one topic, each with all that its listeners have been told.

    Kept only while somebody hears the topic who needs it. Bounded by what the router lets be open.
    """

    __slots__ = ("_texts",)

    def __init__(self) -> None:
        self._texts: dict[str, _StreamSnapshot] = {}

    def put(self, message: Message) -> None:
        """An open message as it is now, for all who hear the topic."""
        self._texts[message.id] = _StreamSnapshot(message)

    def offer(self, message: Message) -> None:
        """An open message as one listener was sent it; what is known already is not taken back."""
        known = self._texts.get(message.id)
        if known is None or known.next_index < message.next_index:
            self.put(message)

    def add(self, delta: DeltaFrame, count: int) -> None:
        """Deltas, `count` of them in one frame; those that are known are dropped."""
        text = self._texts.get(delta.message_id)
        if text is not None and delta.index == text.next_index:
            text.add(delta, count)

    def so_far(self, message_id: str) -> Message | None:
        """The message as it is now, not to be changed; None where it is not open."""
        text = self._texts.get(message_id)
        return text.message if text is not None else None

    def complete(self, change: Change) -> Change:
        """The end of a message with the message as it has become; anything else as it is."""
        text = self._texts.get(change.message_id)
        if text is None or change.kind != CHANGE_KIND_ENDED or change.HasField("message"):
            return change
        completed = Change()
        completed.CopyFrom(change)
        message = completed.message
        message.CopyFrom(text.message)
        message.state = change.state
        message.updated_at.CopyFrom(change.changed_at)
        if change.HasField("error"):
            message.error.CopyFrom(change.error)
        return completed

    def forget(self, message_id: str) -> None:
        """It is open no longer."""
        self._texts.pop(message_id, None)

    def clear(self) -> None:
        """None is open any longer."""
        self._texts.clear()


class _StreamSnapshot:
    """One open message. Text is joined when somebody looks at it, not with each delta."""

    __slots__ = ("_kind", "_message", "_waiting", "next_index")

    def __init__(self, message: Message) -> None:
        self._message = Message()
        self._message.CopyFrom(message)
        self.next_index: int = message.next_index
        self._kind = ""
        self._waiting: list[str] = []

    @property
    def message(self) -> Message:
        self._join()
        self._message.next_index = self.next_index
        return self._message

    def add(self, delta: DeltaFrame, count: int) -> None:
        kind = delta.WhichOneof("content") or ""
        if kind != self._kind:
            self._join()
            self._kind = kind
        if kind == "part":
            self._add_part(delta.part)
        elif kind:
            self._waiting.append(getattr(delta, kind))
        self.next_index += count

    def _join(self) -> None:
        """Add the text or reasoning that waits, to the last part if that is of its kind."""
        if not self._waiting:
            return
        said = "".join(self._waiting)
        self._waiting.clear()
        parts = self._message.parts
        last = parts[-1] if parts and parts[-1].HasField(self._kind) else parts.add()  # type: ignore[arg-type]
        getattr(last, self._kind).text += said

    def _add_part(self, part: Part) -> None:
        parts = self._message.parts
        if parts and part.HasField("tool_call") and parts[-1].HasField("tool_call"):
            last = parts[-1].tool_call
            if last.call_id == part.tool_call.call_id:
                last.arguments += part.tool_call.arguments
                return
        parts.add().CopyFrom(part)
