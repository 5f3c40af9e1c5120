"""Reads deliveries and dead letters."""

from __future__ import annotations

from typing import Any

from trunkline_router.core.values.stored_records import (
    Backlog,
    ExpiredDelivery,
    ExpiredPage,
    StoredDeadLetter,
    StoredDelivery,
)
from trunkline_router.log.encryption import SealedTable, is_sealed
from trunkline_router.log.postgres.read_pool import Connections
from trunkline_router.log.postgres.stored_text import from_column
from trunkline_router.log.postgres.texts import HIGHEST_ID, is_storable
from trunkline_router.log.stored_values import StoredValues

#: LATERAL with LIMIT fixes the order of the loops: no plan depends on statistics, which new tables lack.
_MESSAGE_OF = """
    LEFT JOIN LATERAL (
        SELECT body, crc, epoch, forked, platform, kind, target
        FROM messages JOIN topics USING (topic_id)
        WHERE messages.topic_id = item.topic_id AND messages.seq = item.seq
        LIMIT 1
    ) AS message ON true
"""
_DELIVERIES = f"""
    SELECT delivery_id, topic_id, seq, body, crc, epoch, forked, platform, kind, target, attempts, expires_ms
    FROM (
        SELECT * FROM deliveries WHERE tenant = $1 AND agent = $2 AND delivery_id > $3
        ORDER BY delivery_id LIMIT $4
    ) AS item {_MESSAGE_OF}
"""
_DEAD_LETTERS = f"""
    SELECT delivery_id, topic_id, seq, body, crc, epoch, forked, attempts, reason, given_up_ms
    FROM (
        SELECT * FROM dead_letters WHERE tenant = $1 AND agent = $2 AND delivery_id > $3
        ORDER BY delivery_id LIMIT $4
    ) AS item {_MESSAGE_OF}
"""
#: Has not expired by a time.
_WAITS = "(expires_ms = 0 OR expires_ms > $2 OR attempts > 0)"
_BACKLOGS = f"""
    SELECT agent, sum(waiting)::bigint, max(oldest_ms), sum(dead)::bigint
    FROM (
        SELECT agent, waiting, coalesce(created_ms, 0) AS oldest_ms, 0 AS dead
        FROM (
            SELECT agent, count(*) AS waiting, min(delivery_id) AS oldest_id FROM deliveries
            WHERE tenant = $1 AND {_WAITS} GROUP BY agent
        ) AS waiting
        LEFT JOIN LATERAL (
            SELECT created_ms FROM deliveries JOIN messages USING (topic_id, seq)
            WHERE delivery_id = oldest_id LIMIT 1
        ) AS oldest ON true
        UNION ALL
        SELECT agent, 0, 0, count(*) FROM dead_letters WHERE tenant = $1 GROUP BY agent
    ) AS backlogs
    GROUP BY agent
"""
_COUNT = f"SELECT count(*) FROM deliveries WHERE tenant = $1 AND agent = $3 AND {_WAITS}"
#: With a last row without a tenant if there may be more.
_EXPIRED = """
    WITH looked_at AS MATERIALIZED (
        SELECT * FROM deliveries WHERE delivery_id > $1 ORDER BY delivery_id LIMIT $2
    )
    SELECT delivery_id, tenant, agent FROM looked_at
    WHERE expires_ms > 0 AND expires_ms <= $3 AND attempts = 0
    UNION ALL
    SELECT max(delivery_id), NULL, NULL FROM looked_at HAVING count(*) = $2
"""


async def read_deliveries(
    connections: Connections, tenant: str, agent: str, after: int, limit: int, values: StoredValues
) -> list[StoredDelivery]:
    """Read the unsettled deliveries of an agent above an id, lowest first, without damaged ones."""
    return [
        StoredDelivery(delivery_id, (tenant, agent, platform, kind, target), body, attempts, expires_ms)
        for delivery_id, body, (platform, kind, target, attempts, expires_ms) in await _read(
            connections, _DELIVERIES, (tenant, agent), after, limit, values
        )
    ]


async def read_dead_letters(
    connections: Connections, tenant: str, agent: str, after: int, limit: int, values: StoredValues
) -> list[StoredDeadLetter]:
    """Read the dead letters of an agent above an id, lowest first, without damaged ones."""
    letters = []
    for delivery_id, body, (attempts, reason, given_up_ms) in await _read(
        connections, _DEAD_LETTERS, (tenant, agent), after, limit, values
    ):
        # A damaged one is not worth the letter.
        plain = values.value(tenant, SealedTable.DEAD_LETTERS, delivery_id, 0, reason) or b""
        text = plain.decode(errors="replace")
        if not is_sealed(reason):
            text = from_column(text)
        letters.append(StoredDeadLetter(delivery_id, body, attempts, text, given_up_ms))
    return letters


async def _read(
    connections: Connections,
    query: str,
    agent: tuple[str, str],
    after: int,
    limit: int,
    values: StoredValues,
) -> list[tuple[int, bytes, list[Any]]]:
    """Read rows above an id, lowest first. A damaged row is left out, and one more row is read for it."""
    found: list[tuple[int, bytes, list[Any]]] = []
    if not is_storable(*agent):
        return found
    after = min(after, HIGHEST_ID)
    while (missing := limit - len(found)) > 0:
        rows = sorted(await connections.fetch(query, *agent, after, missing))
        for delivery_id, topic_id, seq, stored, crc, epoch, forked, *rest in rows:
            # None for remains of an erased log.
            if stored is None:
                continue
            message = values.message(agent[0], topic_id, seq, stored, crc, epoch, forked)
            if message is not None:
                found.append((delivery_id, message, rest))
        if len(rows) < missing:
            break
        after = rows[-1][0]
    return found


async def read_backlogs(connections: Connections, tenant: str, now_ms: int) -> list[Backlog]:
    """Count the unsettled deliveries, without expired ones, and dead letters of each agent."""
    if not is_storable(tenant):
        return []
    return [Backlog(*row) for row in await connections.fetch(_BACKLOGS, tenant, now_ms)]


async def count_waiting(connections: Connections, tenant: str, agent: str, now_ms: int) -> int:
    """Count the unsettled deliveries of one agent, without expired ones."""
    if not is_storable(tenant, agent):
        return 0
    [(count,)] = await connections.fetch(_COUNT, tenant, now_ms, agent)
    return int(count)


async def read_expired(connections: Connections, after: int, limit: int, now_ms: int) -> ExpiredPage:
    """Read the expired deliveries among the next `limit` of all deliveries above an id."""
    expired = []
    next_after = 0
    for delivery_id, tenant, agent in await connections.fetch(
        _EXPIRED, min(after, HIGHEST_ID), limit, now_ms
    ):
        if tenant is None:
            next_after = delivery_id
        else:
            expired.append(ExpiredDelivery(delivery_id, tenant, agent))
    return ExpiredPage(sorted(expired), next_after)
