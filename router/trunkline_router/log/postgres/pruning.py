"""Erases the beginnings of logs that exceed a tenant's retention."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from trunkline_router.core.values.log_records import Cursor, ErasedPiece, HistoryLimits
from trunkline_router.log.log_spans import LogPiece, LogSpan
from trunkline_router.log.postgres.fence import FencedWriter
from trunkline_router.log.postgres.log_walk import SPANS, next_logs, span_columns
from trunkline_router.log.postgres.unsettled_work import DELETE_WORK, work_of_messages
from trunkline_router.log.pruning_plan import EntrySize, Front, plan_pruning

#: First entries of each log whose ages are read for many logs at once; further ones cost a round trip.
PROBED_ENTRIES = 64

_FRONTS = f"""
    SELECT s.topic_id, s.first, s.last,
        (SELECT min(seq) FROM open_messages AS o WHERE o.topic_id = s.topic_id) AS open_seq,
        coalesce(
            (SELECT created_ms FROM messages AS m WHERE m.topic_id = s.topic_id AND m.seq = s.first),
            (SELECT created_ms FROM events AS e WHERE e.topic_id = s.topic_id AND e.seq = s.first)
        ) AS oldest_ms
    FROM {SPANS}
"""
_YOUNG = """least(
    (SELECT seq FROM messages AS m WHERE m.topic_id = s.topic_id AND m.seq BETWEEN s.first AND s.last
        AND m.created_ms >= $4 ORDER BY m.seq LIMIT 1),
    (SELECT seq FROM events AS e WHERE e.topic_id = s.topic_id AND e.seq BETWEEN s.first AND s.last
        AND e.created_ms >= $4 ORDER BY e.seq LIMIT 1)
)"""
#: OFFSET 0 keeps `oldest_ms` from being read twice.
_PROBED_FRONTS = f"""
    SELECT topic_id, open_seq, oldest_ms, CASE WHEN oldest_ms < $4 THEN {_YOUNG} END
    FROM ({_FRONTS} OFFSET 0) AS s
"""
_FIRST_SINCE = f"SELECT {_YOUNG} FROM {SPANS}"
_IN_SPAN = "t.topic_id = s.topic_id AND t.seq BETWEEN s.first AND s.last"
_OF_SPAN = f"(SELECT sum(length(body)) FROM {{}} AS t WHERE {_IN_SPAN})"
_BYTES = f"""
    SELECT s.topic_id,
        (coalesce({_OF_SPAN.format("messages")}, 0) + coalesce({_OF_SPAN.format("events")}, 0))::bigint
    FROM {SPANS}
"""
#: OFFSET 0 keeps the look-up by key of each span.
_SIZES = " UNION ALL ".join(
    f"""
    SELECT t.topic_id, t.seq, t.size FROM {SPANS} CROSS JOIN LATERAL (
        SELECT topic_id, seq, length(body) AS size FROM {table}
        WHERE topic_id = s.topic_id AND seq BETWEEN s.first AND s.last OFFSET 0
    ) AS t
    """
    for table in ("messages", "events")
)
_PRUNE = f"""{DELETE_WORK},
    spans AS MATERIALIZED (
        SELECT s.* FROM fence, unnest($5::bigint[], $6::bigint[], $7::bigint[]) AS s (topic_id, first, last)
    ),
    gone_messages AS (
        DELETE FROM messages AS m USING spans AS s
        WHERE m.topic_id = s.topic_id AND m.seq BETWEEN s.first AND s.last
        RETURNING 1
    ),
    gone_events AS (
        DELETE FROM events AS e USING spans AS s
        WHERE e.topic_id = s.topic_id AND e.seq BETWEEN s.first AND s.last
    ),
    pruned AS (UPDATE topics AS t SET pruned = s.last FROM spans AS s WHERE t.topic_id = s.topic_id)
"""
_RESULT = "to_jsonb((SELECT count(*) FROM gone_messages))"


async def prune(
    writer: FencedWriter, tenant: str, limits: HistoryLimits, cursor: Cursor | None, now_ms: int
) -> ErasedPiece:
    """Erase the beginnings of some logs."""
    reads = _WriterReads(writer, now_ms - limits.max_age_ms if limits.max_age_ms else None)
    pruning = await plan_pruning(reads, tenant, limits, cursor, now_ms)
    messages = 0
    if pruning.spans:
        work = await work_of_messages(writer, tenant, pruning.spans, pruning.messages)
        messages = await writer.write(_PRUNE, _RESULT, *work, *span_columns(pruning.spans))
    return ErasedPiece(messages, cursor=pruning.cursor)


class _WriterReads:
    """Implements PruningReads with the connection that writes.

    `oldest_ms` is the time before which entries are too old; None for no such limit.
    """

    def __init__(self, writer: FencedWriter, oldest_ms: int | None) -> None:
        self._writer = writer
        self._oldest_ms = oldest_ms
        #: The first entry that is young enough among the first PROBED_ENTRIES of each log whose first is not.
        self._young: dict[int, int | None] = {}

    async def next_logs(self, tenant: str, topic_id: int, *, inclusive: bool) -> LogPiece:
        """See PruningReads."""
        return await next_logs(self._writer, tenant, topic_id, inclusive=inclusive)

    async def fronts(self, spans: Sequence[LogSpan]) -> Mapping[int, Front]:
        """See PruningReads."""
        if not spans:
            return {}
        if self._oldest_ms is None:
            rows = await self._writer.read(_FRONTS, *span_columns(spans))
            return {topic_id: Front(*front) for topic_id, _, _, *front in rows}
        probed = span_columns([_probed(span) for span in spans])
        rows = await self._writer.read(_PROBED_FRONTS, *probed, self._oldest_ms)
        self._young = {topic_id: young for topic_id, *_, young in rows}
        return {topic_id: Front(open_seq, oldest_ms) for topic_id, open_seq, oldest_ms, _ in rows}

    async def total_bytes(self, spans: Sequence[LogSpan]) -> Mapping[int, int]:
        """See PruningReads."""
        return {row[0]: row[1] for row in await self._writer.read(_BYTES, *span_columns(spans))}

    async def sizes(self, spans: Sequence[LogSpan]) -> Iterable[EntrySize]:
        """See PruningReads."""
        return [EntrySize(*row) for row in await self._writer.read(_SIZES, *span_columns(spans))]

    async def first_since(self, span: LogSpan, time_ms: int) -> int | None:
        """See PruningReads."""
        young = self._young[span.topic_id]
        if young is not None:
            return young if young <= span.last else None
        if span.last <= _probed(span).last:
            return None
        ((first,),) = await self._writer.read(_FIRST_SINCE, *span_columns([span]), time_ms)
        return None if first is None else int(first)


def _probed(span: LogSpan) -> LogSpan:
    return span._replace(last=min(span.last, span.first + PROBED_ENTRIES - 1))
