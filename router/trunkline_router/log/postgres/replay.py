"""Turns dead letters into deliveries."""

from __future__ import annotations

from collections.abc import Sequence

from trunkline_router.core.values.stored_records import StoredDelivery
from trunkline_router.log.batch import IdCounters
from trunkline_router.log.postgres.fence import FencedWriter


async def replay(
    writer: FencedWriter, counters: IdCounters, tenant: str, agent: str, delivery_ids: Sequence[int]
) -> list[StoredDelivery]:
    """See Log.replay."""
    raise NotImplementedError
