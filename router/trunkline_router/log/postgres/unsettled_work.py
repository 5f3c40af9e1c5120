"""Finds and deletes deliveries and dead letters of messages that are erased."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import NamedTuple

from trunkline_router.log.batch import RowKey
from trunkline_router.log.log_spans import LogSpan, agents_of
from trunkline_router.log.postgres.batch_part import transposed
from trunkline_router.log.postgres.fence import FencedWriter

_OF_TENANT = "ARRAY (SELECT delivery_id FROM {} WHERE tenant = $1 LIMIT $2)"
_READ_OF_TENANT = f"SELECT {_OF_TENANT.format('deliveries')}, {_OF_TENANT.format('dead_letters')}"
#: Scans all deliveries of the agents: an index would cost every message for the few that are erased
#: unsettled. IS TRUE keeps the keys in a hash table: a join would compare each delivery with each of them.
_OF_MESSAGES = """
    ARRAY (
        SELECT delivery_id FROM {} WHERE tenant = $1 AND agent = ANY ($2::text[])
        AND ((topic_id, seq) IN (SELECT * FROM unnest($3::bigint[], $4::bigint[]))) IS TRUE
    )
"""
_READ_OF_MESSAGES = f"SELECT {_OF_MESSAGES.format('deliveries')}, {_OF_MESSAGES.format('dead_letters')}"

#: Parts that delete an UnsettledWork, whose fields are the parameters $3 and $4.
DELETE_WORK = """
    gone_deliveries AS (DELETE FROM deliveries USING fence WHERE delivery_id = ANY ($3::bigint[])),
    gone_dead_letters AS (DELETE FROM dead_letters USING fence WHERE delivery_id = ANY ($4::bigint[]))
"""


class UnsettledWork(NamedTuple):
    """Ids of deliveries and of dead letters."""

    deliveries: Sequence[int]
    dead_letters: Sequence[int]


async def work_of_tenant(writer: FencedWriter, tenant: str, most: int) -> UnsettledWork:
    """Find at most `most` deliveries, and as many dead letters, of a tenant."""
    (row,) = await writer.read(_READ_OF_TENANT, tenant, most)
    return UnsettledWork(*row)


async def work_of_messages(
    writer: FencedWriter, tenant: str, spans: Sequence[LogSpan], messages: Collection[RowKey]
) -> UnsettledWork:
    """Find the deliveries and dead letters of these messages, which are in these spans of a tenant's logs."""
    if not messages:
        return UnsettledWork([], [])
    agents = list(agents_of(spans, messages))
    (row,) = await writer.read(_READ_OF_MESSAGES, tenant, agents, *transposed(messages, 2))
    return UnsettledWork(*row)
