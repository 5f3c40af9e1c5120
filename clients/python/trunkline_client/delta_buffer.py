"""Deltas of a message on their way to the log. Pure."""

from __future__ import annotations

from collections.abc import Iterable

from trunkline.v1.message_pb2 import Delta, Part

#: Past either bound the author waits until some deltas are written.
MAX_UNWRITTEN_DELTAS = 256
MAX_UNWRITTEN_BYTES = 64 << 10
#: Past this bound the author waits until some deltas are on disk.
MAX_KEPT_BYTES = 1 << 20
#: Unwritten text is joined with the text that follows up to this length; longer text is divided.
MAX_DELTA_CHARS = 16 << 10


class DeltaBuffer:
    """Numbered deltas: first unwritten, then kept for a rewrite until they are on disk, then forgotten.

    `add_text` and `add_part` never refuse. The caller must check `is_full` first, so the bounds are exceeded
    by the content of one call at most. Unwritten text and the text that follows it become one delta.
    """

    def __init__(self) -> None:
        #: Index of the next new delta.
        self.next_index = 0
        self._kept: dict[int, Delta] = {}
        self._kept_bytes = 0
        #: Index of the next delta to write.
        self._unwritten = 0
        self._unwritten_bytes = 0
        #: Deltas before this one were written at least once and cannot grow.
        self._sealed = 0

    def __repr__(self) -> str:
        return f"<DeltaBuffer at {self.next_index}, {self.next_index - self._unwritten} unwritten>"

    @property
    def is_full(self) -> bool:
        """Whether the caller must wait before adding more."""
        return (
            self._unwritten_bytes >= MAX_UNWRITTEN_BYTES
            or self.next_index - self._unwritten >= MAX_UNWRITTEN_DELTAS
            or self._kept_bytes >= MAX_KEPT_BYTES
        )

    @property
    def has_unwritten(self) -> bool:
        """Whether `take` would return something."""
        return self._unwritten < self.next_index

    def begin(self, next_index: int) -> None:
        """Starts after the deltas that the log holds; call it before adding anything."""
        self.next_index = self._unwritten = self._sealed = next_index

    def restart(self, next_index: int, deltas: Iterable[Delta]) -> None:
        """Replaces everything kept by these deltas, starting after those that the log holds."""
        self._kept.clear()
        self._kept_bytes = self._unwritten_bytes = 0
        self.begin(next_index)
        for delta in deltas:
            if delta.HasField("part"):
                self.add_part(delta.part)
            else:
                reasoning = delta.HasField("reasoning")
                self.add_text(delta.reasoning if reasoning else delta.text, reasoning=reasoning)

    def add_text(self, text: str, *, reasoning: bool = False) -> None:
        """Adds text; empty text adds nothing."""
        if not text:
            return
        kind = "reasoning" if reasoning else "text"
        last = self._kept.get(self.next_index - 1) if self._sealed < self.next_index else None
        if (
            last is not None
            and last.WhichOneof("content") == kind
            and len(getattr(last, kind)) + len(text) <= MAX_DELTA_CHARS
        ):
            before = last.ByteSize()
            setattr(last, kind, getattr(last, kind) + text)
            self._count(last.ByteSize() - before)
            return
        for start in range(0, len(text), MAX_DELTA_CHARS):
            piece = text[start : start + MAX_DELTA_CHARS]
            self._append(Delta(reasoning=piece) if reasoning else Delta(text=piece))

    def add_part(self, part: Part) -> None:
        """Adds a part."""
        self._append(Delta(part=part))

    def take(self, max_bytes: int, max_items: int) -> list[Delta]:
        """Returns the next deltas to write and counts them as written; at least one if any is unwritten."""
        taken: list[Delta] = []
        size = 0
        while self._unwritten < self.next_index and len(taken) < max_items:
            delta = self._kept[self._unwritten]
            size += delta.ByteSize()
            if taken and size > max_bytes:
                break
            taken.append(delta)
            self._unwritten += 1
            self._unwritten_bytes -= delta.ByteSize()
        self._sealed = max(self._sealed, self._unwritten)
        return taken

    def forget_before(self, index: int) -> None:
        """Forgets the deltas before this index, which are on disk."""
        first = self.next_index - len(self._kept)
        for each in range(first, min(index, self._unwritten)):
            self._kept_bytes -= self._kept.pop(each).ByteSize()

    def rewind_to(self, index: int) -> bool:
        """Counts the deltas from this index as unwritten; False if they are forgotten or do not exist."""
        first = self.next_index - len(self._kept)
        if not first <= index <= self.next_index:
            return False
        self._unwritten = index
        self._sealed = max(self._sealed, index)
        self._unwritten_bytes = sum(self._kept[each].ByteSize() for each in range(index, self.next_index))
        return True

    def rewind_to_first_kept(self) -> None:
        """Counts all kept deltas as unwritten; the router ignores those that it already has."""
        self.rewind_to(self.next_index - len(self._kept))

    def drop_unwritten(self) -> None:
        """Forgets the unwritten deltas; nothing more will be written."""
        for each in range(self._unwritten, self.next_index):
            self._kept_bytes -= self._kept.pop(each).ByteSize()
        self.next_index = self._unwritten
        self._unwritten_bytes = 0

    def _append(self, delta: Delta) -> None:
        delta.index = self.next_index
        self._kept[self.next_index] = delta
        self.next_index += 1
        self._count(delta.ByteSize())

    def _count(self, size: int) -> None:
        self._kept_bytes += size
        self._unwritten_bytes += size
