"""Turns dead letters into deliveries."""

from __future__ import annotations

from collections.abc import Sequence

from trunkline_router.core.values.stored_records import StoredDelivery
from trunkline_router.log.postgres.batch_part import number_parameters
from trunkline_router.log.postgres.fence import FencedWriter
from trunkline_router.log.postgres.id_blocks import RESERVE_IDS, IdBlocks
from trunkline_router.log.stored_values import StoredValues

_DEAD_LETTERS = """
    SELECT delivery_id, topic_id, seq, body, crc, epoch, forked, platform, kind, target
    FROM dead_letters AS d JOIN topics USING (topic_id) JOIN messages USING (topic_id, seq)
    WHERE d.tenant = $1 AND d.agent = $2 AND delivery_id = ANY ($3::bigint[])
    ORDER BY delivery_id
"""
_REPLAY = """
    replayed AS (
        DELETE FROM dead_letters AS d USING fence
        WHERE d.tenant = $3 AND d.agent = $4 AND delivery_id = ANY ($5::bigint[])
        RETURNING delivery_id, d.tenant, d.agent, topic_id, seq
    ),
    new_deliveries AS (
        INSERT INTO deliveries (delivery_id, tenant, agent, topic_id, seq)
        SELECT $6::bigint + number, tenant, agent, topic_id, seq
        FROM replayed
        JOIN unnest($5::bigint[]) WITH ORDINALITY AS old (delivery_id, number) USING (delivery_id)
    )
"""
_REPLAY_AND_RESERVE = f"{_REPLAY}, {number_parameters(RESERVE_IDS, 7)}"


async def replay(
    writer: FencedWriter,
    values: StoredValues,
    ids: IdBlocks,
    tenant: str,
    agent: str,
    delivery_ids: Sequence[int],
) -> list[StoredDelivery]:
    """Replay dead letters in the order of their ids, which is that of their messages; see Log.replay.

    Reads them first: nothing may fail once they are deliveries.
    """
    counters = ids.counters
    old = sorted({number for number in delivery_ids if 0 < number <= counters.delivery_id})
    if not old:
        return []
    last = counters.delivery_id
    new_ids = {number: last + place for place, number in enumerate(old, 1)}
    counters.delivery_id += len(old)
    replayed: list[StoredDelivery] = []
    for delivery_id, topic_id, seq, body, crc, epoch, forked, *rest in await writer.read(
        _DEAD_LETTERS, tenant, agent, old
    ):
        # A damaged one is replayed, too, but cannot be delivered.
        if (message := values.message(tenant, topic_id, seq, body, crc, epoch, forked)) is not None:
            platform, kind, target = rest
            topic = (tenant, agent, platform, kind, target)
            replayed.append(StoredDelivery(new_ids[delivery_id], topic, message, 0, 0))
    missing = ids.missing()
    if missing is None:
        await writer.write(_REPLAY, "NULL", tenant, agent, old, last)
    else:
        await writer.write(_REPLAY_AND_RESERVE, "NULL", tenant, agent, old, last, *missing)
        ids.reserved(missing)
    return replayed
