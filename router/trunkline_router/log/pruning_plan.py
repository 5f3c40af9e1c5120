"""Plans which beginnings of logs exceed a tenant's retention, for every engine.

Age and number cost a few look-ups for each log within its limits. The size of a log is stored nowhere,
because each append would pay for that: it is summed from the end backward, for many small logs at once, and
for a large log over several pieces.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from trunkline_router.core.values.log_records import Cursor, HistoryLimits
from trunkline_router.log.log_spans import LogPiece, LogSpan, take_logs

#: Entries that one piece deletes or sums; and the fixed cost of one log, in entries.
ENTRIES = 2_000
ENTRIES_A_LOG = 20


class Front(NamedTuple):
    """The beginning of a log."""

    #: Seq of the first open message; None if there is none.
    open_seq: int | None
    #: Time of the first entry; None if the log is empty.
    oldest_ms: int | None


class EntrySize(NamedTuple):
    """The stored size of an entry."""

    topic_id: int
    seq: int
    size: int


class PruningReads(Protocol):
    """The engine's part of a plan: reads that are consistent with all commits so far."""

    async def next_logs(self, tenant: str, topic_id: int, *, inclusive: bool) -> LogPiece:
        """Read the tenant's logs after `topic_id`, or from that log on."""

    async def fronts(self, spans: Sequence[LogSpan]) -> Mapping[int, Front]:
        """Read the beginnings of logs, by topic_id."""

    async def total_bytes(self, spans: Sequence[LogSpan]) -> Mapping[int, int]:
        """Sum the stored sizes of the entries in spans, by topic_id."""

    async def sizes(self, spans: Sequence[LogSpan]) -> Iterable[EntrySize]:
        """Read the stored sizes of the entries in spans, in any order."""

    async def first_since(self, span: LogSpan, time_ms: int) -> int | None:
        """Return the seq of the first entry in a span that was written at a time or later."""


class Pruning(NamedTuple):
    """One piece: the entries to delete, and the cursor of the next piece."""

    spans: list[LogSpan]
    cursor: Cursor | None

    @property
    def messages(self) -> list[tuple[int, int]]:
        """Topic_id and seq of every entry to delete."""
        return [(span.topic_id, seq) for span in self.spans for seq in range(span.first, span.last + 1)]


@dataclass(slots=True)
class _LogToPrune:
    """A log that may exceed its limits."""

    span: LogSpan
    #: The last entry that may be erased: an open message stays, with everything after it.
    last: int
    #: Time of the first entry.
    oldest_ms: int
    #: Size in bytes; None if not summed at once.
    total_bytes: int | None
    #: Progress of the sum: the entries from `summed_from` on hold `summed_bytes`.
    summed_from: int
    summed_bytes: int

    def may_exceed(self, max_bytes: int) -> bool:
        """Whether the log may be larger than `max_bytes`; 0 for no limit."""
        return (
            max_bytes > 0
            and self.span.first <= self.last
            and (self.total_bytes is None or self.total_bytes > max_bytes)
        )

    def add_sizes(self, sizes: Iterable[tuple[int, int]], max_bytes: int) -> None:
        """Add entries, newest first, until the sum exceeds `max_bytes`."""
        for seq, size in sizes:
            self.summed_from = seq
            self.summed_bytes += size
            if self.summed_bytes > max_bytes:
                return

    def needs_sum(self, max_bytes: int) -> bool:
        """Whether a limit of its size requires that more of the log is summed."""
        return (
            0 < max_bytes >= self.summed_bytes
            and self.total_bytes is None
            and self.span.first < min(self.summed_from, self.last + 1)
        )


async def plan_pruning(
    reads: PruningReads, tenant: str, limits: HistoryLimits, cursor: Cursor | None, now_ms: int
) -> Pruning:
    """Plan to erase the beginnings of some logs.

    A cursor is a topic_id; to continue with that log, it also holds the progress of its sum.
    """
    topic_id, *progress = cursor or (0,)
    found, more = await reads.next_logs(tenant, topic_id, inclusive=bool(progress))
    spans = take_logs(found, ENTRIES) if limits.max_bytes else found
    logs = await _load(reads, spans, limits)
    if progress and logs and logs[0].span.topic_id == topic_id:
        logs[0].summed_from, logs[0].summed_bytes = progress
    if limits.max_bytes:
        await _sum_sizes(reads, logs, limits.max_bytes)
    pruned: list[LogSpan] = []
    left = ENTRIES
    rest: Cursor | None = None
    for log in logs:
        if left <= 0:
            break
        span = log.span
        most = span.first + left - 1
        last = min(await _last_over_limit(reads, log, limits, now_ms, most), log.last, most)
        if last >= span.first:
            pruned.append(span._replace(last=last))
            left -= pruned[-1].entries + ENTRIES_A_LOG
        rest = (span.topic_id,)
        if (last == most and last < log.last) or log.needs_sum(limits.max_bytes):
            rest = (span.topic_id, log.summed_from, log.summed_bytes)
            break
    is_last = not more and (not found or rest == (found[-1].topic_id,))
    return Pruning(pruned, None if is_last else rest)


async def _load(reads: PruningReads, spans: Sequence[LogSpan], limits: HistoryLimits) -> list[_LogToPrune]:
    fronts = await reads.fronts(spans)
    totals: Mapping[int, int] = {}
    if limits.max_bytes and sum(span.entries for span in spans) <= ENTRIES:
        totals = await reads.total_bytes(spans)
    logs = []
    for span in spans:
        open_seq, oldest_ms = fronts[span.topic_id]
        last = span.last if open_seq is None else open_seq - 1
        total = totals.get(span.topic_id)
        logs.append(_LogToPrune(span, last, oldest_ms or 0, total, span.last + 1, 0))
    return logs


async def _sum_sizes(reads: PruningReads, logs: Sequence[_LogToPrune], max_bytes: int) -> None:
    """Sum more of the sizes of those logs that may be too large."""
    summed = [log for log in logs if log.may_exceed(max_bytes) and log.summed_bytes <= max_bytes]
    windows = [
        log.span._replace(first=max(log.span.first, log.summed_from - ENTRIES), last=log.summed_from - 1)
        for log in summed
    ]
    sizes: dict[int, list[tuple[int, int]]] = {window.topic_id: [] for window in windows}
    for topic_id, seq, size in await reads.sizes(windows) if windows else ():
        sizes[topic_id].append((seq, size))
    for log in summed:
        log.add_sizes(sorted(sizes[log.span.topic_id], reverse=True), max_bytes)


async def _last_over_limit(
    reads: PruningReads, log: _LogToPrune, limits: HistoryLimits, now_ms: int, most: int
) -> int:
    """Return the last entry beyond the limits. Ages are not examined after `most`."""
    span = log.span
    last = span.first - 1
    if log.last <= last:
        return last
    if limits.max_messages:
        last = max(last, span.last - limits.max_messages)
    if limits.max_age_ms and log.oldest_ms < now_ms - limits.max_age_ms:
        examined = span._replace(last=min(log.last, most))
        young = await reads.first_since(examined, now_ms - limits.max_age_ms)
        last = max(last, examined.last if young is None else young - 1)
    if log.may_exceed(limits.max_bytes) and log.summed_bytes > limits.max_bytes:
        last = max(last, min(log.summed_from, span.last - 1))
    return last
