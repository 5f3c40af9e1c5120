"""Marks the loss in a log whose database was restored to an earlier time."""

from __future__ import annotations

import json
import time

from trunkline_router.log.postgres.fence import FencedWriter
from trunkline_router.log.postgres.forks import fork_all

_AUDIT = """
    audited AS (
        INSERT INTO audit (at_ms, tenant, actor, source, action, target, before, after)
        SELECT $3, '', 'operator', 'command line', 'Restore', '', '', $4 FROM fence
    )
"""


async def fork_restored(writer: FencedWriter) -> int:
    """Begin a new epoch of every log, as their owner. Returns their number. Raises LogUnavailable."""
    logs = await fork_all(writer)
    now_ms = time.time_ns() // 1_000_000
    await writer.write(_AUDIT, "NULL", now_ms, json.dumps({"topics": logs}))
    return logs
