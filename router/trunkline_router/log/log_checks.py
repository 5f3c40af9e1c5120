"""Checks of a log's invariants by SQL, the same for every engine."""

from __future__ import annotations

from typing import NamedTuple

#: Problems that one check reports at most.
MAX_PROBLEMS = 20

_COUNTS = """
    SELECT t.topic_id, t.tenant, t.pruned,
        coalesce(m.entries, 0) + coalesce(e.entries, 0) AS entries,
        {least}(coalesce(m.first, e.first), coalesce(e.first, m.first)) AS first,
        {greatest}(coalesce(m.last, e.last), coalesce(e.last, m.last)) AS last
    FROM topics AS t
    LEFT JOIN (
        SELECT topic_id, count(*) AS entries, min(seq) AS first, max(seq) AS last
        FROM messages GROUP BY topic_id
    ) AS m USING (topic_id)
    LEFT JOIN (
        SELECT topic_id, count(*) AS entries, min(seq) AS first, max(seq) AS last
        FROM events GROUP BY topic_id
    ) AS e USING (topic_id)
"""
_GAPS = f"""
    SELECT topic_id, tenant, entries, last - pruned, pruned + 1, last FROM ({{counts}}) AS counts
    WHERE entries > 0 AND (entries <> last - pruned OR first <> pruned + 1) LIMIT {MAX_PROBLEMS}
"""
_NUMBERED_TWICE = f"SELECT topic_id, seq FROM messages JOIN events USING (topic_id, seq) LIMIT {MAX_PROBLEMS}"
_IS_ERASED = "EXISTS (SELECT 1 FROM erased WHERE erased.topic_id = r.topic_id)"
#: Rows that must belong to a stored message, unless their log was erased and is being swept.
_WITHOUT_MESSAGE = f"""
    SELECT topic_id, seq FROM {{table}} AS r
    WHERE NOT EXISTS (SELECT 1 FROM messages AS m WHERE m.topic_id = r.topic_id AND m.seq = r.seq)
    AND NOT {_IS_ERASED} LIMIT {MAX_PROBLEMS}
"""
_WITHOUT_LOG = f"""
    SELECT DISTINCT topic_id FROM {{table}} AS r
    WHERE NOT EXISTS (SELECT 1 FROM topics WHERE topics.topic_id = r.topic_id)
    AND NOT {_IS_ERASED} LIMIT {MAX_PROBLEMS}
"""
_ABOVE_COUNTER = """
    SELECT highest FROM (SELECT max({column}) AS highest FROM {table}) AS ids
    WHERE highest > coalesce(({counter}), 0)
"""
_COUNTED = (
    ("topics", "topic_id", "topics"),
    ("deliveries", "delivery_id", "deliveries"),
    ("dead_letters", "delivery_id", "deliveries"),
)


class LogCheck(NamedTuple):
    """A query that returns a row for each problem, and the sentence for a row."""

    query: str
    sentence: str


def counts(*, least: str, greatest: str) -> str:
    """Return a query for topic_id, tenant, pruned, entries, first and last seq of each log.

    `least` and `greatest` are functions of two numbers.
    """
    return _COUNTS.format(least=least, greatest=greatest)


def log_checks(counts: str, counter: str) -> list[LogCheck]:
    """Return the checks; `counter` is a query for the highest id assigned so far, by the name `{name}`."""
    checks = [
        LogCheck(
            _GAPS.format(counts=counts),
            "log {0} of tenant {1} has {2} entries instead of {3}: those from {4} to {5}",
        ),
        LogCheck(_NUMBERED_TWICE, "log {0} has two entries with seq {1}"),
    ]
    checks += [
        LogCheck(
            _WITHOUT_MESSAGE.format(table=table),
            f"{table} refers to a message that is missing: log {{0}}, seq {{1}}",
        )
        for table in ("deliveries", "dead_letters", "open_messages")
    ]
    checks += [
        LogCheck(
            _WITHOUT_LOG.format(table=table), f"{table} holds entries of log {{0}}, which does not exist"
        )
        for table in ("messages", "events")
    ]
    checks += [
        LogCheck(
            _ABOVE_COUNTER.format(table=table, column=column, counter=counter.format(name=name)),
            f"{table} holds id {{0}}, which the counter of ids has not reached",
        )
        for table, column, name in _COUNTED
    ]
    return checks
