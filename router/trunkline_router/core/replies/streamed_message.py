"""One message that is said piece by piece: a pure machine.

Deltas are numbered. One that is there already is ignored, one that leaves a gap is refused with the
number expected. Whoever takes the message up gets a higher epoch, and those before can add nothing
more. Of all attempts to end it, the first wins.
"""

from __future__ import annotations

from collections.abc import Iterable
from math import inf
from typing import Any, NamedTuple

from trunkline.v1 import catalogue
from trunkline.v1.agent_service_pb2 import ReplyDeltas
from trunkline.v1.catalogue import Refused
from trunkline.v1.error_pb2 import Error
from trunkline.v1.message_pb2 import Delta, Message, MessageState, Part

from trunkline_router.core.validation.validator import MAX_OPEN_BYTES, check
from trunkline_router.core.values.log_records import Checkpoint, Producer
from trunkline_router.core.values.topics import TopicKey

MAX_TEXT = 262144
MAX_PARTS = 1024

#: What a delta costs in the log and in memory beside its text.
DELTA_BYTES = 16


class PartsBuilder:
    """The parts of a message under construction: each delta joined to what it goes on with."""

    __slots__ = ("_kind", "_parts", "_tail")

    def __init__(self, parts: Iterable[Part] = ()) -> None:
        self._parts = list(parts)
        #: The text at the end, in pieces, and whether it is `text` or `reasoning`; "" for neither.
        self._tail: list[str] = []
        self._kind = ""

    def __len__(self) -> int:
        return len(self._parts) + bool(self._tail)

    def add_text(self, kind: str, text: str) -> None:
        """More of `text` or `reasoning`."""
        if kind != self._kind:
            self._close()
            self._kind = kind
        if text or not self._tail:
            self._tail.append(text)

    def goes_on(self, kind: str) -> bool:
        """More of this kind would be no part of its own."""
        return kind == self._kind

    def add_part(self, part: Part) -> None:
        """A whole part; a tool call with the id of the one at the end adds to its arguments."""
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
        # A copy, as the delta itself goes to the log as it came.
        own = Part()
        own.CopyFrom(part)
        self._parts.append(own)

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

    def all(self) -> list[Part]:
        """The parts so far."""
        return [*self._parts, self._text_part()] if self._tail else list(self._parts)


#: Before each entry of ReplyDeltas.deltas: its field's number, and that its length follows.
_ENTRY = bytes((ReplyDeltas.DELTAS_FIELD_NUMBER << 3 | 2,))


def _serialized(delta: Delta) -> bytes:
    """A delta as it stands in serialized ReplyDeltas: such pieces, strung together, are ReplyDeltas.

    Done as deltas come, so that a checkpoint of all open messages takes no time worth mentioning.
    """
    body = delta.SerializeToString()
    if len(body) < 128:
        return _ENTRY + bytes((len(body),)) + body
    return ReplyDeltas(deltas=[delta]).SerializeToString()


class Ended(NamedTuple):
    """How a message ends."""

    state: MessageState.ValueType
    error: Error | None = None


class StreamedMessage:
    """A message while it is open.

    `add` and `ending` are for its producer; `snapshot` is what a listener is given who comes now. What
    was added since the last checkpoint is kept until the next one is on disk.
    """

    __slots__ = (
        "_base",
        "_parts",
        "_promised",
        "_saved",
        "_saving",
        "_unsaved",
        "ended",
        "heard_at",
        "next_index",
        "owner",
        "producer",
        "reply",
        "size",
        "topic",
        "unsaved_bytes",
        "unsaved_since",
    )

    def __init__(self, topic: TopicKey, message: Message, producer: Producer, now: float) -> None:
        """`message` as it is in the log; what else the log holds is to be added with `restore`."""
        self.topic = topic
        self._base = Message()
        self._base.CopyFrom(message)
        self._parts = PartsBuilder(message.parts)
        self._base.ClearField("parts")
        #: Who may write; and who will, once all that take it up are on disk.
        self.producer = self._promised = producer
        #: The worker that writes it and its number there; None for a backend, or while nobody does.
        self.owner: Any = None
        self.reply = 0
        self.next_index = message.next_index
        self.size = message.ByteSize()
        #: When its producer was last heard, where that is not a worker that is attached.
        self.heard_at = now
        #: Set once an end is on its way to the log.
        self.ended: Ended | None = None
        #: Deltas that no checkpoint on disk holds, each as it stands in serialized ReplyDeltas.
        self._unsaved: list[bytes] = []
        self.unsaved_bytes = 0
        #: How many of these a checkpoint under way holds; 0 for none under way.
        self._saving = 0
        #: Since when a delta waits that no checkpoint holds; None where there is none.
        self.unsaved_since: float | None = None
        self._saved = message.next_index

    def __repr__(self) -> str:
        return f"<OpenMessage {self.id}, {self.next_index} deltas, {self._saved} saved, by {self.producer}>"

    @property
    def id(self) -> str:
        """The message's id."""
        return self._base.id

    @property
    def seq(self) -> int:
        """Where it stands in its log."""
        return self._base.position.seq

    @property
    def reply_to(self) -> str:
        """What it answers."""
        return self._base.reply_to

    @property
    def durable_index(self) -> int:
        """All deltas before this one are on disk."""
        return self._saved

    @property
    def has_unsaved(self) -> bool:
        """A checkpoint is due, and none is under way."""
        return bool(self._unsaved) and not self._saving

    # Adding

    def add(self, delta: Delta) -> bool:
        """One more delta. False where it is there already.

        Raises Refused DELTA_GAP, MESSAGE_TOO_LARGE or INVALID_ARGUMENT; then nothing has changed.
        """
        if delta.index != self.next_index:
            if delta.index < self.next_index:
                return False
            raise self.gap(delta.index)
        kind = delta.WhichOneof("content")
        if kind == "text" or kind == "reasoning":
            text = delta.text if kind == "text" else delta.reasoning
            size = len(text)
            if size > MAX_TEXT:
                problem = f"has {size} characters; at most {MAX_TEXT} are allowed"
                raise catalogue.INVALID_ARGUMENT.refused(field=kind, problem=problem)
            if not text.isascii():
                size = len(text.encode())
            self._make_room(kind, size)
            self._parts.add_text(kind, text)
        elif kind == "part":
            check(delta.part, "part")
            size = delta.part.ByteSize()
            self._make_room(kind, size)
            self._parts.add_part(delta.part)
        else:
            raise catalogue.INVALID_ARGUMENT.refused(field="delta", problem="must have a content")
        self.next_index += 1
        self._unsaved.append(_serialized(delta))
        self.unsaved_bytes += size + DELTA_BYTES
        return True

    def _make_room(self, kind: str, size: int) -> None:
        if self.size + size > MAX_OPEN_BYTES:
            limit = f"{MAX_OPEN_BYTES} bytes"
        elif len(self._parts) >= MAX_PARTS and not self._parts.goes_on(kind):
            limit = f"{MAX_PARTS} parts"
        else:
            self.size += size
            return
        raise catalogue.MESSAGE_TOO_LARGE.refused(message_id=self.id, limit=limit)

    def gap(self, index: int) -> Refused:
        """The refusal of what comes after a gap."""
        refusal = catalogue.DELTA_GAP
        return refusal.refused(index=index, message_id=self.id, expected=self.next_index)

    def fenced(self) -> Refused:
        """The refusal of a producer that was replaced."""
        return catalogue.PRODUCER_FENCED.refused(message_id=self.id, producer=self.producer.name)

    # Checkpoints

    def checkpoint(self) -> Checkpoint:
        """What was added since the last one; `saved` or `not_saved` is to be called after the commit."""
        deltas = b"".join(self._unsaved)
        self._saving = len(self._unsaved)
        self.unsaved_since = None
        self.unsaved_bytes = 0
        return Checkpoint(self.topic, self.seq, self._promised, deltas)

    def saved(self) -> None:
        """The checkpoint is on disk."""
        self._saved += self._saving
        del self._unsaved[: self._saving]
        self._saving = 0

    def not_saved(self) -> None:
        """The checkpoint is not on disk: the next one, which is due at once, holds it again."""
        self._saving = 0
        self.unsaved_since = -inf

    def restore(self, deltas: ReplyDeltas) -> None:
        """Add what the log holds beside the message."""
        for delta in deltas.deltas:
            self.add(delta)
        self._saved = self.next_index
        self._unsaved.clear()
        self.unsaved_bytes = 0

    def taken_up(self, name: str) -> Producer:
        """The next producer; it is one once that is on disk."""
        self._promised = Producer(name, self._promised.epoch + 1)
        return self._promised

    def not_taken_up(self, producer: Producer) -> None:
        """That did not get onto the disk."""
        if self._promised == producer:
            self._promised = self.producer

    # Reading

    def snapshot(self) -> Message:
        """The message with all that was said so far."""
        message = Message()
        message.CopyFrom(self._base)
        message.parts.extend(self._parts.all())
        message.next_index = self.next_index
        return message

    def final(self) -> Message:
        """The message as it will be once it has ended."""
        assert self.ended is not None
        message = self.snapshot()
        message.state = self.ended.state
        if self.ended.error is not None:
            message.error.CopyFrom(self.ended.error)
        return message
