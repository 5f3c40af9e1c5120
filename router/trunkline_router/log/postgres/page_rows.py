"""Reads pages of logs. One statement finds the entries that fit and returns them, from one snapshot."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from trunkline_router.core.values.log_records import Page, PageRequest
from trunkline_router.core.values.topics import EMPTY, Position, TopicKey
from trunkline_router.log.batch import Head, LogEnd
from trunkline_router.log.page_plan import PagePlan, plan_page
from trunkline_router.log.postgres.heads import END
from trunkline_router.log.postgres.read_pool import Connections
from trunkline_router.log.postgres.texts import is_storable, is_storable_topic
from trunkline_router.log.stored_values import StoredValues

#: Bodies that one statement returns, but for pages whose first entry exceeds their limit. They are in memory
#: once, or twice if they are encrypted.
_PORTION_BYTES = 32 << 20

_NO_LOG = LogEnd(Head(0, EMPTY))
#: No log has this topic or epoch.
_NO_TOPIC: TopicKey = ("?", "", "", -1, "")
_NO_EPOCH = "?"
#: Beyond any seq. The sum of two is a bigint.
_FARTHEST = 1 << 61

#: For each request, its log, the range of seqs that `plan_page` plans, and the entries in it, from the end at
#: which the page begins. Edits bring their message; ends bring it if the message precedes the page. The
#: beginning of a backward page is not known before it is cut, so any end counts with its message there. Of
#: what exceeds the limits only the first entry is returned, without its body: it shows that there is more.
#:
#: LATERAL with LIMIT fixes the order of the loops: no plan depends on statistics, which new tables lack.
_PAGES = f"""
    SELECT page, topic_id, epoch, last_seq, pruned, forked,
        seq, size, change, body, crc, brought_seq, brought, brought_crc
    FROM unnest(
        $1::text[], $2::text[], $3::text[], $4::integer[], $5::text[],
        $6::boolean[], $7::text[], $8::bigint[], $9::bigint[], $10::bigint[], $11::bigint[], $12::boolean[]
    ) WITH ORDINALITY AS request (
        tenant, agent, platform, kind, target,
        forward, at_epoch, at_seq, reach, most, max_bytes, messages_only, page
    )
    CROSS JOIN LATERAL (
        SELECT topic_id, epoch, pruned, forked, {END} AS last_seq
        FROM topics
        WHERE topics.tenant = request.tenant AND topics.agent = request.agent
            AND topics.platform = request.platform AND topics.kind = request.kind
            AND topics.target = request.target
        LIMIT 1
    ) AS log
    LEFT JOIN LATERAL (
        SELECT CASE WHEN forward THEN greatest(at_seq, pruned) + 1
                ELSE greatest(pruned, coalesce(at_seq - 1, last_seq) - reach) + 1 END AS lowest,
            CASE WHEN forward THEN least(last_seq, greatest(at_seq, pruned) + reach)
                ELSE coalesce(at_seq - 1, last_seq) END AS highest
        WHERE at_seq IS NULL OR at_epoch = epoch AND at_seq BETWEEN 0 AND last_seq
            OR at_epoch = '' AND at_seq = 0
    ) AS span ON true
    LEFT JOIN LATERAL (
        SELECT seq, size, change, CASE WHEN fits THEN body END AS body, crc, brought_seq,
            CASE WHEN fits AND (change = 2 OR brought_seq < min(seq) FILTER (WHERE fits) OVER ())
                THEN brought END AS brought,
            brought_crc
        FROM (
            SELECT *, sum(size) OVER inward - size AS before, row_number() OVER inward AS place,
                row_number() OVER inward <= most
                    AND (row_number() OVER inward = 1 OR sum(size) OVER inward <= max_bytes) AS fits
            FROM (
                (
                    SELECT seq, octet_length(body) AS size, NULL::integer AS change, body, crc,
                        NULL::bigint AS brought_seq, NULL::bytea AS brought, NULL::bigint AS brought_crc
                    FROM messages
                    WHERE messages.topic_id = log.topic_id AND seq BETWEEN lowest AND highest AND forward
                    ORDER BY seq LIMIT most + 1
                )
                UNION ALL
                (
                    SELECT seq, octet_length(body), NULL, body, crc, NULL, NULL, NULL
                    FROM messages
                    WHERE messages.topic_id = log.topic_id AND seq BETWEEN lowest AND highest AND NOT forward
                    ORDER BY seq DESC LIMIT most + 1
                )
                UNION ALL
                SELECT event.seq, octet_length(event.body) + coalesce(octet_length(brought.body), 0),
                    change, event.body, event.crc, brought.seq, brought.body, brought.crc
                FROM (
                    SELECT * FROM events
                    WHERE events.topic_id = log.topic_id AND seq BETWEEN lowest AND highest
                        AND NOT messages_only
                    ORDER BY seq LIMIT most
                ) AS event
                LEFT JOIN LATERAL (
                    SELECT seq, body, crc FROM messages
                    WHERE messages.topic_id = log.topic_id AND messages.seq = message_seq
                        AND (change = 2 OR change = 1 AND (NOT forward OR message_seq < lowest))
                    LIMIT 1
                ) AS brought ON true
            ) AS stored
            WINDOW inward AS (
                ORDER BY CASE WHEN forward THEN seq ELSE -seq END ROWS UNBOUNDED PRECEDING
            )
        ) AS cut
        WHERE place <= 2 OR before <= max_bytes AND place <= most + 1
    ) AS entry ON true
"""


async def read_pages(
    connections: Connections, requests: Sequence[PageRequest], values: StoredValues
) -> list[Page]:
    """Read one page for each request, in order."""
    pages: list[Page] = []
    for portion in _portions(requests):
        pages += await _read_portion(connections, portion, values)
    return pages


def _portions(requests: Sequence[PageRequest]) -> Iterator[Sequence[PageRequest]]:
    """Split requests into those of one statement each."""
    start = portion_bytes = 0
    for index, request in enumerate(requests):
        portion_bytes += request.max_bytes
        if portion_bytes > _PORTION_BYTES and index > start:
            yield requests[start:index]
            start, portion_bytes = index, request.max_bytes
    if start < len(requests):
        yield requests[start:]


async def _read_portion(
    connections: Connections, requests: Sequence[PageRequest], values: StoredValues
) -> list[Page]:
    rows = await connections.fetch(_PAGES, *_parameters(requests))
    found: list[PagePlan | None] = [None] * len(requests)
    for number, topic_id, epoch, last_seq, pruned, forked, seq, size, *_ in rows:
        plan = found[number - 1]
        if plan is None:
            end = LogEnd(Head(topic_id, Position(epoch, last_seq)), pruned, forked)
            plan = found[number - 1] = plan_page(requests[number - 1], end)
        if seq is not None:
            plan.sizes.append((seq, size))
    plans = [plan or plan_page(request, _NO_LOG) for plan, request in zip(found, requests, strict=True)]
    for plan in plans:
        plan.cut()
    for number, _, _, _, _, _, seq, _, change, body, crc, *brought in rows:
        plan = plans[number - 1]
        if seq is None or not plan.first <= seq <= plan.last:
            continue
        if change is None:
            plan.add_message(values, seq, body, crc)
        else:
            plan.add_event(values, seq, change, body, crc, *brought)
    return [plan.page() for plan in plans]


def _parameters(requests: Sequence[PageRequest]) -> Iterator[list[Any]]:
    """Yield the columns of the statement's `request`."""
    topics = [request.topic if is_storable_topic(request.topic) else _NO_TOPIC for request in requests]
    yield from map(list, zip(*topics, strict=True))
    yield [request.after is not None for request in requests]
    at = [request.before if request.after is None else request.after for request in requests]
    yield [position and (position.epoch if is_storable(position.epoch) else _NO_EPOCH) for position in at]
    yield [position and min(max(position.seq, -1), _FARTHEST) for position in at]
    yield [_FARTHEST if request.messages_only else request.limit for request in requests]
    yield [request.limit for request in requests]
    yield [request.max_bytes for request in requests]
    yield [request.messages_only for request in requests]
