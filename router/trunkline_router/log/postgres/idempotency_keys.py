"""Reads the results of idempotency keys."""

from __future__ import annotations

from collections.abc import Sequence

from trunkline_router.log.append_results import StoredResult
from trunkline_router.log.postgres.fence import FencedWriter

_RESULTS = """
    SELECT key, digest, i.epoch, seq, connections, coalesce((
        SELECT t.epoch FROM former_epochs AS f JOIN topics AS t USING (topic_id) WHERE f.epoch = i.epoch
    ), i.epoch)
    FROM idempotency AS i WHERE key = ANY ($1::bytea[])
"""


async def look_up_results(writer: FencedWriter, keys: Sequence[bytes]) -> dict[bytes, StoredResult]:
    """Read the results stored for those of these keys that are in use."""
    return {key: StoredResult(*result) for key, *result in await writer.read(_RESULTS, keys)}
