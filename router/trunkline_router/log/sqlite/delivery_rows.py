"""Reads deliveries and dead letters, replays dead letters, and deletes both.

Each query returns all results in one row; see statements.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Sequence
from typing import Any

from trunkline_router.core.values.stored_records import (
    Backlog,
    ExpiredDelivery,
    ExpiredPage,
    StoredDeadLetter,
    StoredDelivery,
)
from trunkline_router.log.batch import RowKey
from trunkline_router.log.encryption import SealedTable
from trunkline_router.log.sqlite.statements import Write
from trunkline_router.log.stored_values import StoredValues

_DELIVERIES = """
    SELECT json_group_array(json_array(
        delivery_id, topic_id, seq, hex(body), crc, epoch, forked,
        platform, kind, target, attempts, expires_ms
    ))
    FROM (
        SELECT delivery_id, topic_id, seq, attempts, expires_ms FROM deliveries
        WHERE tenant = ? AND agent = ? AND delivery_id > ? ORDER BY delivery_id LIMIT ?
    ) JOIN topics USING (topic_id) JOIN messages USING (topic_id, seq)
"""
_DEAD_LETTERS = """
    SELECT json_group_array(json_array(
        delivery_id, topic_id, seq, hex(body), crc, epoch, forked,
        attempts, hex(reason), typeof(reason), given_up_ms
    ))
    FROM (
        SELECT delivery_id, topic_id, seq, attempts, reason, given_up_ms FROM dead_letters
        WHERE tenant = ? AND agent = ? AND delivery_id > ? ORDER BY delivery_id LIMIT ?
    ) JOIN topics USING (topic_id) JOIN messages USING (topic_id, seq)
"""
#: Has not expired by a time.
_WAITS = "(expires_ms = 0 OR expires_ms > ? OR attempts > 0)"
_WAITING = f"""
    SELECT json_group_array(json_array(agent, count, created_ms))
    FROM (
        SELECT agent, count(*) AS count, min(delivery_id) AS first FROM deliveries
        WHERE tenant = ? AND {_WAITS} GROUP BY agent
    ) JOIN (SELECT delivery_id, topic_id, seq FROM deliveries) ON delivery_id = first
    JOIN messages USING (topic_id, seq)
"""
_COUNT = f"SELECT count(*) FROM deliveries WHERE tenant = ? AND agent = ? AND {_WAITS}"
_EXPIRED = """
    SELECT count(*), max(delivery_id), json_group_array(json_array(delivery_id, tenant, agent))
        FILTER (WHERE expires_ms > 0 AND expires_ms <= ? AND attempts = 0)
    FROM (SELECT * FROM deliveries WHERE delivery_id > ? ORDER BY delivery_id LIMIT ?)
"""
_DEAD = """
    SELECT json_group_object(agent, count)
    FROM (SELECT agent, count(*) AS count FROM dead_letters WHERE tenant = ? GROUP BY agent)
"""
_REPLAY = Write(
    "INSERT OR ROLLBACK INTO deliveries (delivery_id, tenant, agent, topic_id, seq)"
    " SELECT column1, tenant, agent, topic_id, seq FROM $rows CROSS JOIN dead_letters"
    " ON delivery_id = column2 AND tenant = column3 AND agent = column4",
    4,
)
_DELETE_REPLAYED = (
    "DELETE FROM dead_letters"
    " WHERE tenant = ? AND agent = ? AND delivery_id IN (SELECT value FROM json_each(?))"
)
#: Scans all deliveries of the agents: an index would cost every message for the few that are erased
#: unsettled.
_DELETE = "DELETE FROM {} WHERE tenant = ? AND agent IN (SELECT value FROM json_each(?)) AND {}"
_WORK_TABLES = ("deliveries", "dead_letters")
_OF_MESSAGES = (
    "(topic_id, seq) IN (SELECT json_extract(value, '$[0]'), json_extract(value, '$[1]') FROM json_each(?))"
)
_IN_LOGS = "+topic_id IN (SELECT value FROM json_each(?))"
#: Ids have 64 bits in the contract and 63 in SQLite.
_HIGHEST_ID = (1 << 63) - 1


def read_deliveries(
    db: sqlite3.Connection, tenant: str, agent: str, after: int, limit: int, values: StoredValues
) -> list[StoredDelivery]:
    """Read the unsettled deliveries of an agent above an id, lowest first, without damaged ones."""
    return [
        StoredDelivery(delivery_id, (tenant, agent, platform, kind, target), body, attempts, expires_ms)
        for delivery_id, body, (platform, kind, target, attempts, expires_ms) in _read(
            db, _DELIVERIES, (tenant, agent), after, limit, values
        )
    ]


def read_dead_letters(
    db: sqlite3.Connection, tenant: str, agent: str, after: int, limit: int, values: StoredValues
) -> list[StoredDeadLetter]:
    """Read the dead letters of an agent above an id, lowest first, without damaged ones."""
    letters = []
    for delivery_id, body, (attempts, reason, kind, given_up_ms) in _read(
        db, _DEAD_LETTERS, (tenant, agent), after, limit, values
    ):
        text: bytes | None = bytes.fromhex(reason)
        # An encrypted reason is a BLOB among TEXT. A damaged one is not worth the letter.
        if kind == "blob":
            text = values.value(tenant, SealedTable.DEAD_LETTERS, delivery_id, 0, bytes.fromhex(reason))
        plain = (text or b"").decode(errors="replace")
        letters.append(StoredDeadLetter(delivery_id, body, attempts, plain, given_up_ms))
    return letters


def _read(
    db: sqlite3.Connection, query: str, agent: tuple[str, str], after: int, limit: int, values: StoredValues
) -> list[tuple[int, bytes, list[Any]]]:
    """Read rows above an id, lowest first. A damaged row is left out, and one more row is read for it."""
    found: list[tuple[int, bytes, list[Any]]] = []
    after = min(after, _HIGHEST_ID)
    while (missing := limit - len(found)) > 0:
        rows = json.loads(db.execute(query, (*agent, after, missing)).fetchone()[0])
        rows.sort()
        for delivery_id, topic_id, seq, body, crc, epoch, forked, *rest in rows:
            message = values.message(agent[0], topic_id, seq, bytes.fromhex(body), crc, epoch, forked)
            if message is not None:
                found.append((delivery_id, message, rest))
        if len(rows) < missing:
            break
        after = rows[-1][0]
    return found


def read_backlogs(db: sqlite3.Connection, tenant: str, now_ms: int) -> list[Backlog]:
    """Count the unsettled deliveries, without expired ones, and dead letters of each agent."""
    waiting = json.loads(db.execute(_WAITING, (tenant, now_ms)).fetchone()[0])
    dead = json.loads(db.execute(_DEAD, (tenant,)).fetchone()[0])
    backlogs = [Backlog(agent, count, oldest, dead.pop(agent, 0)) for agent, count, oldest in waiting]
    return backlogs + [Backlog(agent, 0, 0, count) for agent, count in dead.items()]


def count_waiting(db: sqlite3.Connection, tenant: str, agent: str, now_ms: int) -> int:
    """Count the unsettled deliveries of one agent, without expired ones."""
    count: int = db.execute(_COUNT, (tenant, agent, now_ms)).fetchone()[0]
    return count


def read_expired(db: sqlite3.Connection, after: int, limit: int, now_ms: int) -> ExpiredPage:
    """Read the expired deliveries among the next `limit` of all deliveries above an id."""
    count, last, rows = db.execute(_EXPIRED, (now_ms, after, limit)).fetchone()
    expired = [ExpiredDelivery(*row) for row in sorted(json.loads(rows))]
    return ExpiredPage(expired, last if count == limit else 0)


def replay(
    db: sqlite3.Connection,
    tenant: str,
    agent: str,
    first: int,
    delivery_ids: Sequence[int],
    values: StoredValues,
) -> list[StoredDelivery]:
    """Turn dead letters into deliveries with ids from `first` on, in the given order.

    All ids from `first` on must be new.
    """
    rows = [value for new, old in enumerate(delivery_ids, first) for value in (new, old, tenant, agent)]
    _REPLAY.run(db, rows)
    db.execute(_DELETE_REPLAYED, (tenant, agent, json.dumps(delivery_ids)))
    return read_deliveries(db, tenant, agent, first - 1, len(delivery_ids), values)


def delete_deliveries_of_messages(
    db: sqlite3.Connection, tenant: str, agents: Iterable[str], messages: Sequence[RowKey]
) -> None:
    """Delete the deliveries and dead letters of these messages, which belong to these agents."""
    if messages:
        _delete(db, tenant, agents, _OF_MESSAGES, json.dumps(messages))


def delete_deliveries_of_logs(db: sqlite3.Connection, tenant: str, agents: Iterable[str], logs: str) -> None:
    """Delete the deliveries and dead letters of these logs, given as a JSON array of topic_ids."""
    _delete(db, tenant, agents, _IN_LOGS, logs)


def _delete(db: sqlite3.Connection, tenant: str, agents: Iterable[str], where: str, which: str) -> None:
    for table in _WORK_TABLES:
        db.execute(_DELETE.format(table, where), (tenant, json.dumps(list(agents)), which))
