"""Reserves ids in blocks, so that no id is assigned twice, whichever router owns the log."""

from __future__ import annotations

from trunkline_router.log.batch import IdCounters
from trunkline_router.log.postgres.fence import FencedWriter

#: Ids that are reserved together. What an owner leaves of its block is never assigned.
TOPIC_IDS, DELIVERY_IDS = 1_000, 10_000

_READ = "SELECT name, reserved FROM id_blocks"
#: Reserves topic_ids up to %1 and delivery_ids up to %2, in the statement that assigns some of them.
RESERVE_IDS = """reserved_ids AS (
    UPDATE id_blocks SET reserved = greatest(id_blocks.reserved, new.reserved)
    FROM fence, (VALUES ('topics', %1::bigint), ('deliveries', %2::bigint)) AS new (name, reserved)
    WHERE id_blocks.name = new.name
)"""


class IdBlocks:
    """The ids that one owner of the log may assign: they were never assigned, and are higher than all before.

    A write that assigns an id beyond the reserved ones reserves the next block.
    """

    def __init__(self) -> None:
        """`open` must follow."""
        #: The highest ids assigned so far; the caller counts.
        self.counters = IdCounters(0, 0, 0)
        self._topics = 0
        self._deliveries = 0

    async def open(self, writer: FencedWriter) -> None:
        """Begin above all ids that former owners may have assigned."""
        reserved = dict(await writer.read(_READ))
        self.counters.topic_id = self._topics = reserved["topics"]
        self.counters.delivery_id = self._deliveries = reserved["deliveries"]

    def missing(self) -> tuple[int, int] | None:
        """Return the topic_ids and delivery_ids to reserve with the next write; None if there are enough.

        Confirm with `reserved`.
        """
        topics, deliveries = self._topics, self._deliveries
        counters = self.counters
        if counters.topic_id <= topics and counters.delivery_id <= deliveries:
            return None
        if counters.topic_id > topics:
            topics = counters.topic_id + TOPIC_IDS
        if counters.delivery_id > deliveries:
            deliveries = counters.delivery_id + DELIVERY_IDS
        return topics, deliveries

    def reserved(self, numbers: tuple[int, int]) -> None:
        """The numbers are committed."""
        self._topics, self._deliveries = numbers
