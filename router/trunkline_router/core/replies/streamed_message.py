"""One streamed message while it is open: a pure state machine.

Deltas are numbered. A repeated delta is ignored; one that leaves a gap is rejected with the expected
number. Each takeover raises the producer's epoch, which fences earlier producers. The first attempt
to end the message wins.
"""

from __future__ import annotations

from math import inf
from typing import NamedTuple, Self

from trunkline.v1 import catalogue
from trunkline.v1.agent_service_pb2 import EndReply, ReplyDeltas
from trunkline.v1.broadcast_service_pb2 import EndMessageRequest
from trunkline.v1.catalogue import Refused
from trunkline.v1.error_pb2 import Error
from trunkline.v1.message_pb2 import Delta, Message, MessageState, Part
from trunkline_runtime.free_form import MAX_MESSAGE_VALUES, count_up_to_limit

from trunkline_router.core.agents.worker import AttachedWorker
from trunkline_router.core.replies.message_parts import PartsBuilder
from trunkline_router.core.validation.message_constraints import MAX_OPEN_BYTES
from trunkline_router.core.validation.validator import check
from trunkline_router.core.values.failures import error_for_readers
from trunkline_router.core.values.log_records import Checkpoint, Producer
from trunkline_router.core.values.message_states import FAILED
from trunkline_router.core.values.topics import TopicKey

MAX_TEXT = 262144
MAX_PARTS = 1024

#: Overhead of a delta in the log and in memory, beside its text.
DELTA_BYTES = 16


class MessageEnd(NamedTuple):
    """The final state of a message, with the error if it failed."""

    state: MessageState.ValueType
    error: Error | None = None

    @classmethod
    def requested(cls, request: EndReply | EndMessageRequest) -> Self:
        """Return the end that a producer requests; one that is FAILED has an error for readers."""
        if request.state != FAILED:
            return cls(request.state)
        return cls(FAILED, error_for_readers(request.error if request.HasField("error") else None))


class StreamedMessage:
    """A message while it is open.

    `add` is for its producer; `snapshot` is for readers who join late. Deltas added since the last
    committed checkpoint are kept for the next one; open messages are bounded by MAX_OPEN_BYTES each.
    """

    __slots__ = (
        "_base",
        "_durable_index",
        "_in_checkpoint",
        "_next_producer",
        "_parts",
        "_unsaved",
        "ended",
        "heard_at",
        "is_cancelled",
        "next_index",
        "owner",
        "producer",
        "reply_number",
        "size",
        "topic",
        "unsaved_bytes",
        "unsaved_since",
        "values",
    )

    def __init__(self, topic: TopicKey, message: Message, producer: Producer, now: float) -> None:
        """Start from `message` as the log holds it; add later deltas of the log with `restore`."""
        self.topic = topic
        self._base = Message()
        self._base.CopyFrom(message)
        self._parts = PartsBuilder(message.parts)
        self._base.ClearField("parts")
        #: Current producer, and the one after all takeovers under way.
        self.producer = self._next_producer = producer
        #: Worker that produces it and the reply's number there; None for a backend or no producer.
        self.owner: AttachedWorker | None = None
        self.reply_number = 0
        self.next_index = message.next_index
        self.size = message.ByteSize()
        #: Free-form values in its parts.
        self.values = sum(map(_count_values, message.parts))
        #: When its producer last sent something, unless that is an attached worker.
        self.heard_at = now
        #: Set once an end is on its way to the log.
        self.ended: MessageEnd | None = None
        #: The message that it answers was cancelled: if the log fails to commit the end, `tick` tries again.
        self.is_cancelled = False
        #: Deltas that are in no committed checkpoint, each serialized as an entry of ReplyDeltas.
        self._unsaved: list[bytes] = []
        self.unsaved_bytes = 0
        #: Number of those in the checkpoint under way; 0 if none is.
        self._in_checkpoint = 0
        #: When the oldest delta in no checkpoint was added; None if there is none.
        self.unsaved_since: float | None = None
        self._durable_index = message.next_index

    def __repr__(self) -> str:
        durable = self._durable_index
        return f"<StreamedMessage {self.id}, {self.next_index} deltas, {durable} durable, by {self.producer}>"

    @property
    def id(self) -> str:
        """Id of the message."""
        return self._base.id

    @property
    def seq(self) -> int:
        """Sequence number in its log."""
        return self._base.position.seq

    def log_forked(self, epoch: str) -> None:
        """Its log has a new epoch, in which it keeps its seq."""
        self._base.position.epoch = epoch

    @property
    def reply_to(self) -> str:
        """Id of the message that it answers."""
        return self._base.reply_to

    @property
    def durable_index(self) -> int:
        """All deltas before this index are on disk."""
        return self._durable_index

    @property
    def has_unsaved(self) -> bool:
        """A checkpoint is due and none is under way."""
        return bool(self._unsaved) and not self._in_checkpoint

    # Deltas

    def add(self, delta: Delta, *, is_stored: bool = False) -> bool:
        """Append a delta. Return False if it is a repeat.

        One that the log holds, `is_stored`, may date from before the limits of free-form values. Otherwise
        raises Refused DELTA_GAP, MESSAGE_TOO_LARGE or INVALID_ARGUMENT and changes nothing then.
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
            self._reserve(kind, size)
            self._parts.add_text(kind, text)
        elif kind == "part":
            if not is_stored:
                check(delta.part, "part")
                self._reserve_values(delta.part)
            size = delta.part.ByteSize()
            self._reserve(kind, size)
            self._parts.add_part(delta.part)
        else:
            raise catalogue.INVALID_ARGUMENT.refused(field="delta", problem="must have a content")
        self.next_index += 1
        self._unsaved.append(_serialized(delta))
        self.unsaved_bytes += size + DELTA_BYTES
        return True

    def _reserve(self, kind: str, size: int) -> None:
        if self.size + size > MAX_OPEN_BYTES:
            limit = f"{MAX_OPEN_BYTES} bytes"
        elif len(self._parts) >= MAX_PARTS and not self._parts.continues(kind):
            limit = f"{MAX_PARTS} parts"
        else:
            self.size += size
            return
        raise catalogue.MESSAGE_TOO_LARGE.refused(message_id=self.id, limit=limit)

    def _reserve_values(self, part: Part) -> None:
        values = _count_values(part)
        if self.values + values > MAX_MESSAGE_VALUES:
            limit = f"{MAX_MESSAGE_VALUES} values in `data` together"
            raise catalogue.MESSAGE_TOO_LARGE.refused(message_id=self.id, limit=limit)
        self.values += values

    def gap(self, index: int) -> Refused:
        """Return the error for a delta, or an end, that leaves a gap."""
        error = catalogue.DELTA_GAP
        return error.refused(index=index, message_id=self.id, expected=self.next_index)

    def fenced(self) -> Refused:
        """Return the error for a producer that was replaced."""
        return catalogue.PRODUCER_FENCED.refused(message_id=self.id, producer=self.producer.name)

    # Checkpoints

    def checkpoint(self) -> Checkpoint:
        """Return a checkpoint of the deltas added since the last one.

        The caller must call `checkpoint_committed` or `checkpoint_failed` afterwards.
        """
        deltas = b"".join(self._unsaved)
        self._in_checkpoint = len(self._unsaved)
        self.unsaved_since = None
        self.unsaved_bytes = 0
        return Checkpoint(self.topic, self.seq, self._next_producer, deltas)

    def checkpoint_committed(self) -> None:
        """The checkpoint is on disk."""
        self._durable_index += self._in_checkpoint
        del self._unsaved[: self._in_checkpoint]
        self._in_checkpoint = 0

    def checkpoint_failed(self) -> None:
        """The checkpoint was not committed: the next one, due at once, holds its deltas again."""
        self._in_checkpoint = 0
        self.unsaved_since = -inf

    def restore(self, deltas: ReplyDeltas) -> None:
        """Add deltas that the log holds beside the message."""
        for delta in deltas.deltas:
            self.add(delta, is_stored=True)
        self._durable_index = self.next_index
        self._unsaved.clear()
        self.unsaved_bytes = 0

    # Producers

    def begin_takeover(self, name: str) -> Producer:
        """Return the next producer, which takes over once that is committed."""
        self._next_producer = Producer(name, self._next_producer.epoch + 1)
        return self._next_producer

    def takeover_committed(self, producer: Producer) -> None:
        """The takeover is on disk: earlier producers are fenced."""
        self.producer = producer

    def takeover_failed(self, producer: Producer) -> None:
        """The takeover was not committed."""
        if self._next_producer == producer:
            self._next_producer = self.producer

    # Reading

    def snapshot(self) -> Message:
        """Return the message with all deltas so far."""
        message = Message()
        message.CopyFrom(self._base)
        message.parts.extend(self._parts.all())
        message.next_index = self.next_index
        return message

    def final(self) -> Message:
        """Return the message as it is once it has ended."""
        assert self.ended is not None
        message = self.snapshot()
        message.state = self.ended.state
        if self.ended.error is not None:
            message.error.CopyFrom(self.ended.error)
        return message


def _count_values(part: Part) -> int:
    """Count the free-form values of a part."""
    return count_up_to_limit(part.custom.data) if part.HasField("custom") else 0


#: Tag of an entry of ReplyDeltas.deltas: its field number and the length-delimited wire type.
_ENTRY = bytes((ReplyDeltas.DELTAS_FIELD_NUMBER << 3 | 2,))


def _serialized(delta: Delta) -> bytes:
    """Serialize a delta as one entry of ReplyDeltas; concatenated entries are a ReplyDeltas.

    Done when deltas arrive, so that a checkpoint of all open messages takes almost no time.
    """
    body = delta.SerializeToString()
    if len(body) < 128:
        return _ENTRY + bytes((len(body),)) + body
    return ReplyDeltas(deltas=[delta]).SerializeToString()
