"""Walks the logs of one tenant, for work on all of them that is done in pieces.

Logs come in the order of their addresses, which is indexed. An order of topic_ids would need another index,
written with each new log.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from trunkline_router.core.values.topics import TopicKey
from trunkline_router.log.log_spans import LogPiece, LogSpan
from trunkline_router.log.postgres.fence import FencedWriter
from trunkline_router.log.postgres.heads import END
from trunkline_router.log.postgres.texts import is_storable, is_storable_topic

#: Logs read in one piece of work.
LOGS = 256

#: Spans, as the parameters that `span_columns` returns.
SPANS = "unnest($1::bigint[], $2::bigint[], $3::bigint[]) AS s (topic_id, first, last)"

_LOG = f"agent, platform, kind, target, topic_id, epoch, pruned + 1, {END}"
_AFTER = f"""
    SELECT {_LOG} FROM topics
    WHERE tenant = $1 AND (agent, platform, kind, target) > ($2::text, $3::text, $4::integer, $5::text)
    ORDER BY agent, platform, kind, target LIMIT $6
"""
_FROM = _AFTER.replace(">", ">=")
_ADDRESS = "SELECT agent, platform, kind, target FROM topics WHERE topic_id = $2 AND tenant = $1"
_ONE = f"""
    SELECT {_LOG} FROM topics
    WHERE tenant = $1 AND agent = $2 AND platform = $3 AND kind = $4 AND target = $5
"""
#: Before all addresses.
_START = ("", "", -1, "")


async def next_logs(writer: FencedWriter, tenant: str, topic_id: int, *, inclusive: bool = False) -> LogPiece:
    """Return the tenant's logs after `topic_id`, at most `LOGS`; `inclusive` starts with that log.

    Starts over if there is no such log.
    """
    if not is_storable(tenant):
        return LogPiece([], more=False)
    addresses = await writer.read(_ADDRESS, tenant, topic_id) if topic_id else []
    address = addresses[0] if addresses else _START
    rows = await writer.read(_FROM if inclusive else _AFTER, tenant, *address, LOGS)
    return LogPiece(_spans(tenant, rows), more=len(rows) == LOGS)


async def find_log(writer: FencedWriter, topic: TopicKey) -> list[LogSpan]:
    """Return a topic's log, if there is one."""
    if not is_storable_topic(topic):
        return []
    return _spans(topic[0], await writer.read(_ONE, *topic))


def span_columns(spans: Sequence[LogSpan]) -> tuple[list[int], list[int], list[int]]:
    """Return the topic_ids, first and last seqs of spans."""
    return [span.topic_id for span in spans], [span.first for span in spans], [span.last for span in spans]


def _spans(tenant: str, rows: Iterable[Any]) -> list[LogSpan]:
    return [
        LogSpan(topic_id, (tenant, agent, platform, kind, target), epoch, first, last)
        for agent, platform, kind, target, topic_id, epoch, first, last in rows
    ]
