"""Deletes expired rows, and those of erased logs, a bounded number at a time."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

from trunkline_router.log.postgres.batch_part import transposed
from trunkline_router.log.postgres.fence import FencedWriter

#: Rows of erased logs that one call deletes, and the logs that they belong to, at most.
SWEPT_ROWS = 2_000
SWEPT_LOGS = 500
#: Marks of cancelled messages that one call deletes.
SWEPT_MARKS = 2_000
#: Pages of the table of idempotency keys that one call examines, some 80 keys each. In the order of the file:
#: that of the keys would read a page for each key, and an index by time would be written by each append.
EXAMINED_PAGES = 128
#: Numbers of commits are swept when there are so many, and as many at a time.
SWEPT_COMMITS = 1_000
#: The newest commits of this router that stay: the last one may have to be looked up. Of former owners, only
#: the last one stays, while they are listed.
KEPT_COMMITS = 16

#: In a range of pages, whose bounds are two tids.
_IN_PAGES = "ctid >= {}::tid AND ctid < {}::tid"
_FIND = f"""
    SELECT
        ARRAY (SELECT topic_id FROM erased ORDER BY topic_id LIMIT $1) AS erased,
        pg_relation_size('idempotency') / current_setting('block_size')::bigint AS pages,
        EXISTS (SELECT FROM cancelled_messages WHERE cancelled_ms < $2)
        OR EXISTS (SELECT FROM idempotency WHERE {_IN_PAGES.format("$3", "$4")} AND created_ms < $2)
        OR (SELECT count(*) FROM (SELECT FROM commits LIMIT $5) AS counted) = $5
        AS is_due
"""
#: Tables that hold rows of erased logs until they are swept, with the rest of the key of each.
_TABLES = {
    "messages": "seq, ''",
    "events": "seq, ''",
    "receipts": "0, user_name",
    "open_messages": "seq, ''",
    "open_deltas": "delta_id, ''",
    "cancelled_messages": "seq, ''",
}
_ERASED_ROWS = (
    " UNION ALL ".join(
        f"SELECT '{table}', topic_id, {rest} FROM {table} WHERE topic_id = ANY ($1::bigint[])"
        for table, rest in _TABLES.items()
    )
    + " LIMIT $2"
)


def _gone(table: str, first: int) -> str:
    """Return the part that deletes rows by topic_id and seq, which are the parameters from `first` on."""
    return f"""gone_{table} AS (
        DELETE FROM {table} AS r USING fence,
            unnest(${first}::bigint[], ${first + 1}::bigint[]) AS u (topic_id, seq)
        WHERE r.topic_id = u.topic_id AND r.seq = u.seq
    )"""


_SWEEP = f"""
    gone_erased AS (DELETE FROM erased USING fence WHERE topic_id = ANY ($3::bigint[])),
    {_gone("messages", 4)},
    {_gone("events", 6)},
    gone_receipts AS (
        DELETE FROM receipts AS r USING fence, unnest($8::bigint[], $9::text[]) AS u (topic_id, user_name)
        WHERE r.topic_id = u.topic_id AND r.user_name = u.user_name
    ),
    {_gone("open_messages", 10)},
    gone_deltas AS (DELETE FROM open_deltas USING fence WHERE delta_id = ANY ($12::bigint[])),
    {_gone("cancelled_messages", 13)},
    expired_marks AS (
        DELETE FROM cancelled_messages USING fence WHERE (topic_id, seq) IN (
            SELECT topic_id, seq FROM cancelled_messages WHERE cancelled_ms < $15::bigint LIMIT {SWEPT_MARKS}
        )
    ),
    expired_keys AS (
        DELETE FROM idempotency USING fence
        WHERE {_IN_PAGES.format("$16", "$17")} AND created_ms < $15::bigint
    ),
    own_commits AS (
        DELETE FROM commits AS c USING fence, (
            SELECT batch FROM commits WHERE incarnation = $1 AND batch <= $2 - {KEPT_COMMITS}
            ORDER BY batch LIMIT {SWEPT_COMMITS}
        ) AS old
        WHERE c.incarnation = $1 AND c.batch = old.batch
    ),
    former_commits AS (
        DELETE FROM commits AS c USING fence, (
            SELECT incarnation, batch FROM commits AS o WHERE incarnation <> $1 AND (
                EXISTS (SELECT FROM commits AS n WHERE n.incarnation = o.incarnation AND n.batch > o.batch)
                OR NOT EXISTS (SELECT FROM routers AS r WHERE r.incarnation = o.incarnation)
            ) LIMIT {SWEPT_COMMITS}
        ) AS old
        WHERE c.incarnation = old.incarnation AND c.batch = old.batch
    )
"""


class Sweeper:
    """Sweeps the tables of one log."""

    def __init__(self, writer: FencedWriter) -> None:
        self._writer = writer
        #: First page of the idempotency keys that the next call examines.
        self._page = 0

    async def sweep(self, created_before_ms: int) -> None:
        """Delete some idempotency keys and marks of cancelled messages created before a time.

        Deletes some rows of erased logs, and some numbers of former commits, too. Writes only if there is
        anything to delete.
        """
        pages = ((self._page, 0), (self._page + EXAMINED_PAGES, 0))
        ((erased, all_pages, is_due),) = await self._writer.read(
            _FIND, SWEPT_LOGS, created_before_ms, *pages, SWEPT_COMMITS
        )
        if erased or is_due:
            rows = await self._writer.read(_ERASED_ROWS, erased, SWEPT_ROWS) if erased else []
            # All rows were found: the logs are forgotten with the last of them.
            done = erased if len(rows) < SWEPT_ROWS else []
            await self._writer.write(_SWEEP, "NULL", done, *_keys(rows), created_before_ms, *pages)
        self._page = self._page + EXAMINED_PAGES if self._page + EXAMINED_PAGES < all_pages else 0


def _keys(rows: list[Any]) -> list[list[Any]]:
    """Return the columns of the keys of each table, in the order of the statement."""
    found: dict[str, list[tuple[int, Any, str]]] = defaultdict(list)
    for table, topic_id, number, user in rows:
        found[table].append((topic_id, number, user))
    columns = {table: transposed(found[table], 3) for table in _TABLES}
    return [
        *columns["messages"][:2],
        *columns["events"][:2],
        columns["receipts"][0],
        columns["receipts"][2],
        *columns["open_messages"][:2],
        columns["open_deltas"][1],
        *columns["cancelled_messages"][:2],
    ]
