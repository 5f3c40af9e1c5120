"""Deltas of open messages: joined where they go on from each other, and encoded for many at once."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from trunkline.v1.frame_pb2 import DeltaFrame, ServerFrame

from trunkline_edge.core.encoding import encoded
from trunkline_edge.core.stream_snapshots import StreamSnapshots
from trunkline_edge.dialects.codec import Codec

#: No frame is joined beyond this size, which any client takes.
MAX_JOINED_BYTES = 64 * 1024

#: What can be joined with more of its own kind; anything else is a frame of its own.
_JOINABLE = frozenset({"text", "reasoning"})

#: Where something in an open message begins or ends: the message's id and the index of a delta.
DeltaIndex = tuple[str, int]


class DeltaRange:
    """One delta or several joined ones: those from `index` up to, and without, `next_index`.

    `content` is a string where `kind` is text or reasoning, else a DeltaFrame as it came. `before` is
    how many bytes of deltas the topic has had earlier, so that two of them tell what lies between.
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
    """What the router published: `count` deltas in one frame."""
    kind = delta.WhichOneof("content") or ""
    content: str | DeltaFrame
    if kind in _JOINABLE:
        content = getattr(delta, kind)
    else:
        # A copy, for the original holds on to the whole batch that it came in.
        content = DeltaFrame()
        content.CopyFrom(delta)
    index = delta.index
    return DeltaRange(delta.message_id, index, index + count, kind, content, delta.ByteSize(), before)


def joined(additions: Sequence[DeltaRange]) -> Sequence[DeltaRange]:
    """The same in as few frames as may be. Each message's order is kept; messages move past each other."""
    if len(additions) == 1:
        return additions
    groups: list[list[DeltaRange]] = []
    last: dict[str, list[DeltaRange]] = {}
    sizes: dict[str, int] = {}
    for one in additions:
        group = last.get(one.message_id)
        size = one.size
        if group is not None and _fits(group[-1], one) and sizes[one.message_id] + size <= MAX_JOINED_BYTES:
            group.append(one)
            sizes[one.message_id] += size
        else:
            group = last[one.message_id] = [one]
            sizes[one.message_id] = size
            groups.append(group)
    return [group[0] if len(group) == 1 else _one(group) for group in groups]


def _fits(before: DeltaRange, after: DeltaRange) -> bool:
    return before.kind == after.kind and before.next_index == after.index and before.kind in _JOINABLE


def _one(group: list[DeltaRange]) -> DeltaRange:
    first = group[0]
    content = "".join([str(one.content) for one in group])
    size = sum(one.size for one in group)
    return DeltaRange(
        first.message_id, first.index, group[-1].next_index, first.kind, content, size, first.before
    )


class EncodedDeltas:
    """Additions as the listeners with one codec get them: joined, encoded, in one piece.

    There are two forms, each made when it is first asked for: `short` for those who were last told
    what lies right before `begins`, `long` for all others.
    """

    __slots__ = ("_codec", "_first", "_long", "_rest", "_short", "begins", "deltas", "ends", "frames")

    def __init__(self, codec: Codec, additions: Sequence[DeltaRange]) -> None:
        frames = joined(additions)
        first, last = frames[0], frames[-1]
        #: None where it matters to nobody what they were told last.
        self.begins: DeltaIndex | None = (first.message_id, first.index)
        self.ends: DeltaIndex | None = (last.message_id, last.next_index)
        self.frames = len(frames)
        self.deltas = sum([one.next_index - one.index for one in frames])
        self._codec = codec
        self._first = first
        self._rest = _rest(codec, frames) if len(frames) > 1 else b""
        self._short = self._long = b""

    def short(self) -> bytes:
        """Without the message and index that its reader knows."""
        self._short = self._short or _encoded(self._codec, self._first, goes_on=True) + self._rest
        return self._short

    def long(self) -> bytes:
        """With message and index."""
        self._long = self._long or _encoded(self._codec, self._first, goes_on=False) + self._rest
        return self._long


class EncodedSnapshots:
    """The same for those who get the text so far: each message that something was added to, as it is now."""

    __slots__ = ("_frames", "begins", "deltas", "ends", "frames")

    def __init__(self, codec: Codec, additions: Sequence[DeltaRange], texts: StreamSnapshots) -> None:
        messages = [texts.so_far(one) for one in dict.fromkeys([one.message_id for one in additions])]
        told = [encoded(codec, ServerFrame(message=message)) for message in messages if message is not None]
        self.begins: DeltaIndex | None = None
        self.ends: DeltaIndex | None = None
        self.frames = len(told) - told.count(b"")
        self.deltas = sum([one.next_index - one.index for one in additions])
        self._frames = b"".join(told)

    def short(self) -> bytes:
        """The frames."""
        return self._frames

    def long(self) -> bytes:
        """The same."""
        return self._frames


def _rest(codec: Codec, frames: Sequence[DeltaRange]) -> bytes:
    """All but the first: whether those go on from the one before is the same for everybody."""
    encoded = []
    for before, one in pairwise(frames):
        goes_on = before.message_id == one.message_id and before.next_index == one.index
        encoded.append(_encoded(codec, one, goes_on))
    return b"".join(encoded)


def _encoded(codec: Codec, one: DeltaRange, goes_on: bool) -> bytes:
    frame = ServerFrame()
    delta = frame.delta
    if isinstance(one.content, DeltaFrame):
        delta.CopyFrom(one.content)
        if goes_on:
            delta.ClearField("message_id")
            delta.ClearField("index")
    else:
        if not goes_on:
            delta.message_id, delta.index = one.message_id, one.index
        setattr(delta, one.kind, one.content)
    return encoded(codec, frame)
