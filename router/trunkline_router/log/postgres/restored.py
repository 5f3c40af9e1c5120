"""Tells the log of a database that was restored to an earlier time that it lacks commits."""

from __future__ import annotations

import json
import time

from trunkline_router.log.postgres.connector import Connection, Connector
from trunkline_router.log.postgres.fence import FencedWriter
from trunkline_router.log.postgres.forks import fork_all

_AUDIT = """
    audited AS (
        INSERT INTO audit (at_ms, tenant, actor, source, action, target, before, after)
        SELECT $3, '', 'operator', 'command line', 'Restore', '', '', $4 FROM fence
    )
"""


async def fork_restored(connection: Connection, connector: Connector, incarnation: int) -> int:
    """Begin a new epoch of every log, in the name of the owner. Returns the number of logs.

    Closes the connection. Raises LogUnavailable.
    """
    writer = FencedWriter(connection, connector, incarnation)
    try:
        logs = await fork_all(writer)
        now_ms = time.time_ns() // 1_000_000
        await writer.write(_AUDIT, "NULL", now_ms, json.dumps({"topics": logs}))
    finally:
        await writer.close()
    return logs
