"""Parts of the statement that writes a batch: deliveries, and changes of earlier ones.

Of several changes of one delivery, the first in this order counts: settled, withdrawn, dead-lettered,
attempted.
"""

from __future__ import annotations

from typing import Any

from trunkline_router.log.batch import DEAD_LETTER_COLUMNS, Batch, RowKey
from trunkline_router.log.postgres.batch_part import Part, columns_of, transposed
from trunkline_router.log.postgres.heads import message_id_of
from trunkline_router.log.postgres.stored_text import to_column


def _deliveries(batch: Batch) -> list[list[Any]]:
    return columns_of(batch.deliveries, 6)


DELIVERIES = Part(
    """new_deliveries AS (
        INSERT INTO deliveries (delivery_id, tenant, agent, topic_id, seq, expires_ms)
        SELECT new.* FROM fence,
            unnest(%1::bigint[], %2::text[], %3::text[], %4::bigint[], %5::bigint[], %6::bigint[]) AS new
    )""",
    _deliveries,
)


def _withdrawn(batch: Batch) -> list[object]:
    keys = transposed(_all_withdrawn(batch), 2)
    return [*transposed(batch.withdrawn, 2), *keys, batch.settled, batch.now_ms]


def _all_withdrawn(batch: Batch) -> set[RowKey]:
    return set().union(*batch.withdrawn.values())


#: Scans all deliveries of the agents: an index would cost every message for the few that are withdrawn.
#: IS TRUE keeps the keys in a hash table. The first withdrawal of a message counts.
WITHDRAWN = Part(
    """withdrawn AS MATERIALIZED (
        SELECT d.delivery_id, d.topic_id, d.seq
        FROM fence, unnest(%1::text[], %2::text[]) AS a (tenant, agent)
        CROSS JOIN LATERAL (
            SELECT delivery_id, topic_id, seq FROM deliveries
            WHERE deliveries.tenant = a.tenant AND deliveries.agent = a.agent OFFSET 0
        ) AS d
        WHERE ((d.topic_id, d.seq) IN (SELECT * FROM unnest(%3::bigint[], %4::bigint[]))) IS TRUE
            AND d.delivery_id <> ALL (%5::bigint[])
    ),
    withdrawn_deliveries AS (
        DELETE FROM deliveries USING withdrawn WHERE deliveries.delivery_id = withdrawn.delivery_id
    ),
    new_cancelled AS (
        INSERT INTO cancelled_messages (topic_id, seq, cancelled_ms)
        SELECT new.*, %6::bigint FROM fence, unnest(%3::bigint[], %4::bigint[]) AS new
        ON CONFLICT DO NOTHING
    )""",
    _withdrawn,
)


def _answered(batch: Batch) -> list[list[Any]]:
    rows: set[tuple[int, int, str]] = batch.answered
    if batch.forks:
        # Nobody knows an id of the new epoch yet.
        ends = {topic_id: seq for topic_id, _, seq, _ in batch.forks}
        rows = {row for row in rows if row[1] <= ends.get(row[0], row[1])}
    withdrawn = _all_withdrawn(batch)
    return [*transposed(rows, 3), [row[:2] in withdrawn for row in rows]]


#: `%4` tells which of the messages this batch withdraws. EXISTS would read the whole table into a hash table.
ANSWERED = Part(
    f"""answered_cancelled AS MATERIALIZED (
        SELECT a.topic_id, a.message_id
        FROM fence, unnest(%1::bigint[], %2::bigint[], %3::text[], %4::boolean[])
            AS a (topic_id, seq, message_id, is_withdrawn)
        JOIN topics AS t USING (topic_id)
        WHERE (a.is_withdrawn OR (
            SELECT true FROM cancelled_messages AS c WHERE c.topic_id = a.topic_id AND c.seq = a.seq
        )) AND a.message_id = {message_id_of("a", "t")}
    )""",
    _answered,
)


def _dead_lettered(batch: Batch) -> list[object]:
    settled = set(batch.settled)
    # Of two dead letters of one delivery, the first one counts.
    rows: dict[int, tuple[int, bytes]] = {}
    flat = batch.dead_lettered
    for start in range(0, len(flat), DEAD_LETTER_COLUMNS):
        delivery_id, attempts, reason, _ = flat[start : start + DEAD_LETTER_COLUMNS]
        if delivery_id not in settled:
            stored = reason if isinstance(reason, bytes) else to_column(reason).encode()
            rows.setdefault(delivery_id, (attempts, stored))
    return [list(rows), *transposed(rows.values(), 2), batch.now_ms]


#: Ends a condition on deliveries, in a statement with WITHDRAWN.
_NOT_WITHDRAWN = "AND NOT EXISTS (SELECT FROM withdrawn AS w WHERE w.delivery_id = deliveries.delivery_id)"
_DEAD_LETTERED = """new_dead_letters AS (
    INSERT INTO dead_letters (delivery_id, tenant, agent, topic_id, seq, attempts, reason, given_up_ms)
    SELECT deliveries.delivery_id, tenant, agent, topic_id, seq, new.attempts, reason, %4::bigint
    FROM fence, unnest(%1::bigint[], %2::bigint[], %3::bytea[]) AS new (delivery_id, attempts, reason),
        deliveries
    WHERE deliveries.delivery_id = new.delivery_id {}
    ON CONFLICT DO NOTHING
)"""
#: For batches without and with withdrawals.
DEAD_LETTERED = tuple(Part(_DEAD_LETTERED.format(where), _dead_lettered) for where in ("", _NOT_WITHDRAWN))


def _attempts(batch: Batch) -> list[list[int]]:
    gone = {*batch.settled, *batch.dead_lettered[::DEAD_LETTER_COLUMNS]}
    rows = {row: attempts for row, attempts in batch.attempts.items() if row not in gone}
    return [list(rows), list(rows.values())]


_ATTEMPTS = """attempted AS (
    UPDATE deliveries SET attempts = new.attempts
    FROM fence, unnest(%1::bigint[], %2::bigint[]) AS new (delivery_id, attempts)
    WHERE deliveries.delivery_id = new.delivery_id {}
)"""
#: For batches without and with withdrawals.
ATTEMPTS = tuple(Part(_ATTEMPTS.format(where), _attempts) for where in ("", _NOT_WITHDRAWN))


def _settled(batch: Batch) -> list[list[int]]:
    return [[*batch.settled, *batch.dead_lettered[::DEAD_LETTER_COLUMNS]]]


#: Deletes dead-lettered deliveries, too.
SETTLED = Part(
    """settled AS (
        DELETE FROM deliveries USING fence WHERE delivery_id = ANY (%1::bigint[])
    )""",
    _settled,
)
