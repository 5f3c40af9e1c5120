"""Snapshots of open messages, for clients whose codec does not stream deltas."""

from __future__ import annotations

from trunkline.v1.frame_pb2 import DeltaFrame
from trunkline.v1.message_pb2 import CHANGE_KIND_ENDED, Change, Message, Part


class StreamSnapshots:
    """The open messages of one topic with their text so far.

    Kept only while a subscriber needs them. The router's limit on open messages bounds them.
    """

    __slots__ = ("_snapshots",)

    def __init__(self) -> None:
        self._snapshots: dict[str, _StreamSnapshot] = {}

    def put(self, message: Message) -> None:
        """Replace the snapshot of an open message, for all subscribers."""
        self._snapshots[message.id] = _StreamSnapshot(message)

    def put_newer(self, message: Message) -> None:
        """Replace the snapshot by a newer one that was sent to one subscriber only."""
        known = self._snapshots.get(message.id)
        if known is None or known.next_index < message.next_index:
            self.put(message)

    def append(self, delta: DeltaFrame, count: int) -> None:
        """Append `count` deltas in one frame; deltas that are known already are ignored."""
        snapshot = self._snapshots.get(delta.message_id)
        if snapshot is not None and delta.index == snapshot.next_index:
            snapshot.append(delta, count)

    def get(self, message_id: str) -> Message | None:
        """Return the message so far, which must not be modified; None if it is not open."""
        snapshot = self._snapshots.get(message_id)
        return snapshot.message if snapshot is not None else None

    def complete(self, change: Change) -> Change:
        """Return the end of an open message with its final message; any other change as it is."""
        snapshot = self._snapshots.get(change.message_id)
        if snapshot is None or change.kind != CHANGE_KIND_ENDED or change.HasField("message"):
            return change
        completed = Change()
        completed.CopyFrom(change)
        message = completed.message
        message.CopyFrom(snapshot.message)
        message.state = change.state
        message.updated_at.CopyFrom(change.changed_at)
        if change.HasField("error"):
            message.error.CopyFrom(change.error)
        return completed

    def forget(self, message_id: str) -> None:
        """Drop a message that is no longer open."""
        self._snapshots.pop(message_id, None)

    def clear(self) -> None:
        """Drop all messages."""
        self._snapshots.clear()


class _StreamSnapshot:
    """One open message. Text is joined when the message is read, not with each delta."""

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

    def append(self, delta: DeltaFrame, count: int) -> None:
        kind = delta.WhichOneof("content") or ""
        if kind != self._kind:
            self._join()
            self._kind = kind
        if kind == "part":
            self._append_part(delta.part)
        elif kind:
            self._waiting.append(getattr(delta, kind))
        self.next_index += count

    def _join(self) -> None:
        """Append waiting text or reasoning to the last part, or as a new part if that is of another kind."""
        if not self._waiting:
            return
        text = "".join(self._waiting)
        self._waiting.clear()
        parts = self._message.parts
        last = parts[-1] if parts and parts[-1].HasField(self._kind) else parts.add()  # type: ignore[arg-type]
        getattr(last, self._kind).text += text

    def _append_part(self, part: Part) -> None:
        parts = self._message.parts
        if parts and part.HasField("tool_call") and parts[-1].HasField("tool_call"):
            last = parts[-1].tool_call
            if last.call_id == part.tool_call.call_id:
                last.arguments += part.tool_call.arguments
                return
        parts.add().CopyFrom(part)
