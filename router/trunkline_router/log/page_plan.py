"""Plans pages of logs: the range that a request asks for, and the part of it that fits."""

from __future__ import annotations

from dataclasses import dataclass, field

from trunkline.v1.message_pb2 import Change

from trunkline_router.core.values.log_records import Entry, EntryKind, Page, PageRequest
from trunkline_router.core.values.topics import EMPTY, Position
from trunkline_router.log.batch import Head, LogEnd
from trunkline_router.log.encryption import SealedTable
from trunkline_router.log.stored_entries import in_epoch
from trunkline_router.log.stored_values import StoredValues

#: The wire tag of a Change's field `message`: field number and wire type 2, length-delimited.
_MESSAGE_TAG = bytes((Change.MESSAGE_FIELD_NUMBER << 3 | 2,))


@dataclass(slots=True)
class PagePlan:
    """A page being read.

    The engine fills `sizes` for the range, calls `cut`, and then adds the entries of the range that is left.
    """

    request: PageRequest
    head: Head
    #: The log starts after this seq.
    pruned: int
    #: Entries up to this seq were written in former epochs.
    forked: int
    #: The requested range of seqs; empty if `last` is less than `first`.
    first: int
    last: int
    valid: bool
    #: Seq and size of each requested entry.
    sizes: list[tuple[int, int]] = field(default_factory=list)
    more: bool = False
    entries: list[Entry] = field(default_factory=list)
    #: Seq of a damaged entry in the range; 0 for none.
    damaged_seq: int = 0

    def add_message(self, values: StoredValues, seq: int, stored: bytes, crc: int | None) -> None:
        """Add a stored message, in any order of seqs."""
        body = self._plain(values, SealedTable.MESSAGES, seq, stored, crc)
        if body is not None:
            self._add(seq, EntryKind.MESSAGE, body)

    def add_event(
        self,
        values: StoredValues,
        seq: int,
        change: int,
        stored: bytes,
        crc: int | None,
        brought_seq: int,
        brought: bytes | None,
        brought_crc: int | None,
    ) -> None:
        """Add a stored event, in any order of seqs, with the message that it brings, if any."""
        body = self._plain(values, SealedTable.EVENTS, seq, stored, crc)
        message: bytes | None = b""
        if brought:
            message = self._plain(values, SealedTable.MESSAGES, brought_seq, brought, brought_crc)
        if body is not None and message is not None:
            kind = EntryKind.CHANGE if change else EntryKind.READ
            self._add(seq, kind, change_with_message(body, message))

    def _plain(
        self, values: StoredValues, table: SealedTable, seq: int, stored: bytes, crc: int | None
    ) -> bytes | None:
        body = values.entry(self.request.topic[0], table, self.head.topic_id, seq, stored, crc)
        if body is None:
            self.damaged_seq = seq
        return body

    def _add(self, seq: int, kind: EntryKind, body: bytes) -> None:
        if seq <= self.forked:
            body = in_epoch(kind, body, self.head.position.epoch)
        self.entries.append(Entry(seq, kind, body))

    @property
    def is_empty(self) -> bool:
        """Whether the range is empty."""
        return self.last < self.first

    @property
    def is_forward(self) -> bool:
        """Whether the page is read from its first entry on, rather than backward from its last."""
        return self.request.after is not None

    def cut(self) -> int:
        """Cut the range to the entries that fit the request's limits. Returns their size in bytes."""
        request = self.request
        # From the end at which the page must begin.
        self.sizes.sort(reverse=not self.is_forward)
        seqs, total = _first_within(self.sizes[: request.limit], request.max_bytes)
        if request.messages_only:
            self.more = len(self.sizes) > len(seqs)
        elif self.is_forward:
            self.more = self.valid and (seqs[-1] if seqs else self.first - 1) < self.head.position.seq
        else:
            self.more = self.valid and (seqs[-1] if seqs else self.last + 1) > self.pruned + 1
        self.first, self.last = (min(seqs), max(seqs)) if seqs else (1, 0)
        return total

    def page(self) -> Page:
        """Build the page."""
        if self.damaged_seq:
            return Page([], False, self.head.position, valid=False, damaged_seq=self.damaged_seq)
        self.entries.sort()
        is_forked = self.forked > 0
        return Page(self.entries, self.more, self.head.position, self.valid, is_forked)


def plan_page(request: PageRequest, log_end: LogEnd) -> PagePlan:
    """Determine the range of a request in a log."""
    head, pruned, forked = log_end
    end = head.position.seq
    if not (_is_valid(request.after, head.position) and _is_valid(request.before, head.position)):
        return PagePlan(request, head, pruned, forked, 1, 0, valid=False)
    if request.after is not None:
        first, last = max(request.after.seq, pruned) + 1, end
    else:
        first, last = pruned + 1, end if request.before is None else request.before.seq - 1
    if not request.messages_only:
        # Seqs have no gaps.
        if request.after is not None:
            last = min(last, first + request.limit - 1)
        else:
            first = max(first, last - request.limit + 1)
    return PagePlan(request, head, pruned, forked, first, last, valid=True)


def change_with_message(change: bytes, message: bytes) -> bytes:
    """Append a serialised Message to a serialised Change as its last field, without parsing either."""
    if not message:
        return change
    length = bytearray()
    rest = len(message)
    while rest > 127:
        length.append(rest & 127 | 128)
        rest >>= 7
    length.append(rest)
    return b"".join((change, _MESSAGE_TAG, length, message))


def _is_valid(position: Position | None, head: Position) -> bool:
    if position is None or position == EMPTY:
        return True
    return position.epoch == head.epoch and 0 <= position.seq <= head.seq


def _first_within(sizes: list[tuple[int, int]], max_bytes: int) -> tuple[list[int], int]:
    """The first seqs whose sizes sum up to at most `max_bytes`, at least one, and their sum."""
    seqs: list[int] = []
    total = 0
    for seq, size in sizes:
        if seqs and total + size > max_bytes:
            break
        seqs.append(seq)
        total += size
    return seqs, total
