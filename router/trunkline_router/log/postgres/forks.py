"""Forks logs: begins new epochs after committed entries were lost, so that no position hides the gap.

Entries before the fork stay, with the ids that they have. Positions of the former epoch are invalid, as they
may lie beyond the loss. Seqs continue; a seq that a lost entry had gets another id by the new epoch.
"""

from __future__ import annotations

import time

from trunkline_router.log.batch import IDS_PER_MS, SKIPPED_IDS, Batch
from trunkline_router.log.encryption import MAX_SEALED
from trunkline_router.log.message_ids import new_epoch
from trunkline_router.log.postgres.batch_part import Part, transposed
from trunkline_router.log.postgres.fence import FencedWriter
from trunkline_router.log.postgres.heads import END


def _forks(batch: Batch) -> list[list[object]]:
    # Of two forks of one log, the second one counts.
    return transposed({row[0]: row for row in batch.forks}.values(), 4)


_FORKS = """forks AS MATERIALIZED (
    SELECT f.* FROM fence, unnest(%1::bigint[], %2::text[], %3::bigint[], %4::text[])
        AS f (topic_id, former, seq, epoch)
),
kept_epochs AS (
    INSERT INTO former_epochs (topic_id, first_seq, last_seq, epoch)
    SELECT topic_id, forked + 1, seq, former FROM forks JOIN topics USING (topic_id) WHERE seq > forked
),
new_epochs AS (
    UPDATE topics SET epoch = forks.epoch, forked = forks.seq FROM forks
    WHERE topics.topic_id = forks.topic_id
)"""
#: Forks single logs. Their entries may be those that were written at the seqs of lost ones: only their ids
#: are kept.
FORKS = Part(_FORKS, _forks)
#: The whole database is an older copy, so other logs must be forked, too, by the next owner.
FORKS_OF_OLDER_COPY = Part(
    f"{_FORKS}, older_copy AS (UPDATE installation SET is_older_copy = true FROM fence)", _forks
)


#: The second operand matters if the clock was set back since an earlier fork.
_SKIP_BY_CLOCK = "CASE WHEN {0} > {1} THEN {0} ELSE {1} + $6::bigint END"
_FORK_ALL = f"""
    new AS MATERIALIZED (
        SELECT new.* FROM fence, unnest($3::bigint[], $4::text[]) AS new (topic_id, epoch)
    ),
    kept_epochs AS (
        INSERT INTO former_epochs (topic_id, first_seq, last_seq, epoch)
        SELECT topic_id, forked + 1, {END}, topics.epoch FROM topics JOIN new USING (topic_id)
        WHERE {END} > forked
    ),
    new_epochs AS (
        UPDATE topics SET epoch = new.epoch, forked = {END} FROM new WHERE topics.topic_id = new.topic_id
    ),
    topic_ids AS (
        UPDATE id_blocks SET reserved = reserved + $6::bigint FROM fence WHERE name = 'topics'
    ),
    delivery_ids AS (
        UPDATE id_blocks SET reserved = {_SKIP_BY_CLOCK.format("$7::bigint", "reserved")}
        FROM fence WHERE name = 'deliveries'
    ),
    producer_epochs AS (
        UPDATE open_messages
        SET producer_epoch = {_SKIP_BY_CLOCK.format("$5::bigint", "producer_epoch")} FROM fence
    ),
    used_keys AS (UPDATE tenant_keys SET reserved = $8::bigint FROM fence),
    forked AS (UPDATE installation SET is_older_copy = false FROM fence)
"""


async def fork_all(writer: FencedWriter) -> int:
    """Fork every log. Returns their number.

    Also skips ids of topics and deliveries, and epochs of producers: those given since the loss are not given
    again. The keys of tenants encrypt nothing more, as lost commits may have used them. All of this must be
    read again afterwards.
    """
    topic_ids = [topic_id for (topic_id,) in await writer.read("SELECT topic_id FROM topics")]
    epochs = [new_epoch() for _ in topic_ids]
    now_ms = time.time_ns() // 1_000_000
    await writer.write(
        _FORK_ALL, "NULL", topic_ids, epochs, now_ms, SKIPPED_IDS, now_ms * IDS_PER_MS, MAX_SEALED
    )
    return len(topic_ids)
