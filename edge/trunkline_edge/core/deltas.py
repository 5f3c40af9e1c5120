"""Deltas of open messages: joined if adjacent, and encoded once for many subscribers."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from trunkline.v1.frame_pb2 import DeltaFrame, ServerFrame

from trunkline_edge.core.encoding import encode_frame
from trunkline_edge.core.stream_snapshots import StreamSnapshots
from trunkline_edge.dialects.codec import Codec

#: Largest joined frame; every client accepts this size.
MAX_JOINED_BYTES = 64 * 1024

#: Kinds of content that can be joined; anything else is a frame of its own.
_JOINABLE = frozenset({"text", "reasoning"})

#: A point in an open message: its id and the index of a delta.
DeltaIndex = tuple[str, int]


class DeltaRange:
    """Adjacent deltas of one message: from `index` up to, not including, `next_index`.

    `content` is a string if `kind` is text or reasoning, else a DeltaFrame. `before` is the total of delta
    bytes in the topic before this one, so the difference of two ranges is the bytes between them.
    """

    __slots__ = ("before", "content", "index", "kind", "message_id", "next_index", "size")

    def __init__(
        self,
        message_id: str,
        index: int,
        next_index: int,
        kind: str,
        content: str | DeltaFrame,
        size: int,
        before: int,
    ) -> None:
        self.message_id = message_id
        self.index = index
        self.next_index = next_index
        self.kind = kind
        self.content = content
        self.size = size
        self.before = before


def delta_range(delta: DeltaFrame, count: int, before: int) -> DeltaRange:
    """Return the range of a published frame that carries `count` deltas."""
    kind = delta.WhichOneof("content") or ""
    content: str | DeltaFrame
    if kind in _JOINABLE:
        content = getattr(delta, kind)
    else:
        # A copy: the original keeps its whole batch alive.
        content = DeltaFrame()
        content.CopyFrom(delta)
    index = delta.index
    return DeltaRange(delta.message_id, index, index + count, kind, content, delta.ByteSize(), before)


def join_ranges(ranges: Sequence[DeltaRange]) -> Sequence[DeltaRange]:
    """Join adjacent ranges of each message. Order within a message is kept; messages may pass each other."""
    if len(ranges) == 1:
        return ranges
    groups: list[list[DeltaRange]] = []
    last: dict[str, list[DeltaRange]] = {}
    sizes: dict[str, int] = {}
    for one in ranges:
        group = last.get(one.message_id)
        size = one.size
        if group is not None and _fits(group[-1], one) and sizes[one.message_id] + size <= MAX_JOINED_BYTES:
            group.append(one)
            sizes[one.message_id] += size
        else:
            group = last[one.message_id] = [one]
            sizes[one.message_id] = size
            groups.append(group)
    return [group[0] if len(group) == 1 else _join_group(group) for group in groups]


def _fits(before: DeltaRange, after: DeltaRange) -> bool:
    return before.kind == after.kind and before.next_index == after.index and before.kind in _JOINABLE


def _join_group(group: list[DeltaRange]) -> DeltaRange:
    first = group[0]
    content = "".join([str(one.content) for one in group])
    size = sum(one.size for one in group)
    return DeltaRange(
        first.message_id, first.index, group[-1].next_index, first.kind, content, size, first.before
    )


class EncodedDeltas:
    """Deltas joined and encoded for one codec, in two forms made on demand.

    `short` is for subscribers whose last delta ends at `begin`, `long` for all others.
    """

    __slots__ = ("_codec", "_frames", "_long", "_rest", "_short", "begin", "deltas", "end", "frames")

    def __init__(self, codec: Codec, ranges: Sequence[DeltaRange]) -> None:
        frames = join_ranges(ranges)
        first, last = frames[0], frames[-1]
        #: None if the form does not depend on what was sent before.
        self.begin: DeltaIndex | None = (first.message_id, first.index)
        self.end: DeltaIndex | None = (last.message_id, last.next_index)
        self.frames = len(frames)
        self.deltas = sum([one.next_index - one.index for one in frames])
        self._codec = codec
        self._frames = frames
        #: All but the first. Encoded after the first: an exchange has state.
        self._rest: bytes | None = None
        self._short: bytes | None = None
        self._long: bytes | None = None

    def short(self) -> bytes:
        """Return the frames; the first omits message and index, which the client knows."""
        if self._short is None:
            self._short = self._encode(continues=True)
        return self._short

    def long(self) -> bytes:
        """Return the frames; the first names message and index."""
        if self._long is None:
            self._long = self._encode(continues=False)
        return self._long

    def _encode(self, continues: bool) -> bytes:
        first = _encode_range(self._codec, self._frames[0], continues)
        if len(self._frames) == 1:
            return first
        if self._rest is None:
            self._rest = _encode_rest(self._codec, self._frames)
        return first + self._rest


class EncodedSnapshots:
    """Snapshots for codecs that stream the whole text: one frame for each message with new deltas."""

    __slots__ = ("_data", "begin", "deltas", "end", "frames")

    def __init__(self, codec: Codec, ranges: Sequence[DeltaRange], snapshots: StreamSnapshots) -> None:
        messages = [snapshots.get(one) for one in dict.fromkeys([one.message_id for one in ranges])]
        frames = [
            encode_frame(codec, ServerFrame(message=message)) for message in messages if message is not None
        ]
        self.begin: DeltaIndex | None = None
        self.end: DeltaIndex | None = None
        self.frames = len(frames) - frames.count(b"")
        self.deltas = sum([one.next_index - one.index for one in ranges])
        self._data = b"".join(frames)

    def short(self) -> bytes:
        """Return the frames."""
        return self._data

    def long(self) -> bytes:
        """Return the frames."""
        return self._data


def _encode_rest(codec: Codec, frames: Sequence[DeltaRange]) -> bytes:
    """Encode all frames but the first, which each continue or not alike for every subscriber."""
    encoded = []
    for before, one in pairwise(frames):
        continues = before.message_id == one.message_id and before.next_index == one.index
        encoded.append(_encode_range(codec, one, continues))
    return b"".join(encoded)


def _encode_range(codec: Codec, one: DeltaRange, continues: bool) -> bytes:
    continues = continues and not codec.is_exchange
    frame = ServerFrame()
    delta = frame.delta
    if isinstance(one.content, DeltaFrame):
        delta.CopyFrom(one.content)
        if continues:
            delta.ClearField("message_id")
            delta.ClearField("index")
    else:
        if not continues:
            delta.message_id, delta.index = one.message_id, one.index
        setattr(delta, one.kind, one.content)
    return encode_frame(codec, frame)
