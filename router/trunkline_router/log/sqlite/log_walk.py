"""Walks the logs of one tenant, for work on all of them that is done in pieces.

Logs come in the order of their addresses, which is indexed. An order of topic_ids would need another index,
written with each new log.
"""

from __future__ import annotations

import json
import sqlite3

from trunkline_router.log.log_spans import LogPiece, LogSpan
from trunkline_router.log.sqlite.statements import END

#: Logs read in one piece of work.
LOGS = 256

_AFTER = """
    SELECT json_group_array(
        json_array(agent, platform, kind, target, topic_id, epoch, first, last)
    ) FROM (
        SELECT *, pruned + 1 AS first, $end AS last FROM topics
        WHERE tenant = ? AND (agent, platform, kind, target) > (?, ?, ?, ?)
        ORDER BY agent, platform, kind, target LIMIT ?
    )
""".replace("$end", END)
_FROM = _AFTER.replace(">", ">=")
_ADDRESS = "SELECT agent, platform, kind, target FROM topics WHERE topic_id = ? AND tenant = ?"
#: Before all addresses.
_START = ("", "", -1, "")


def next_logs(db: sqlite3.Connection, tenant: str, topic_id: int, *, inclusive: bool = False) -> LogPiece:
    """Return the tenant's logs after `topic_id`, at most `LOGS`; `inclusive` starts with that log.

    Starts over if there is no such log.
    """
    address = db.execute(_ADDRESS, (topic_id, tenant)).fetchone() or _START
    query = _FROM if inclusive else _AFTER
    found = json.loads(db.execute(query, (tenant, *address, LOGS)).fetchone()[0])
    logs = [
        LogSpan(topic_id, (tenant, agent, platform, kind, target), *rest)
        for agent, platform, kind, target, topic_id, *rest in sorted(found)
    ]
    return LogPiece(logs, more=len(logs) == LOGS)
