"""The logs of one tenant, one after the other, for work on all of them that is done in pieces.

They come in the order of their addresses, which an index has; an order of topic_ids would need another
index, to be written with each new log.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Sequence
from typing import NamedTuple

from trunkline_router.core.values.topics import TopicKey
from trunkline_router.log.sqlite.statements import END

#: How many logs are looked at in one piece of work.
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
_FIRST = ("", "", -1, "")


class Span(NamedTuple):
    """A log, with the seqs of the first entry and of the last; it holds none where `last` is smaller."""

    topic_id: int
    topic: TopicKey
    epoch: str
    first: int
    last: int

    @property
    def entries(self) -> int:
        """How many."""
        return self.last - self.first + 1


def next_logs(db: sqlite3.Connection, tenant: str, topic_id: int, *, again: bool = False) -> list[Span]:
    """The tenant's logs that come after that one, `LOGS` at most; `again`: from that one on.

    From the first one on where it is there no longer, or never was.
    """
    address = db.execute(_ADDRESS, (topic_id, tenant)).fetchone() or _FIRST
    found = json.loads(db.execute(_FROM if again else _AFTER, (tenant, *address, LOGS)).fetchone()[0])
    return [
        Span(topic_id, (tenant, agent, platform, kind, target), *rest)
        for agent, platform, kind, target, topic_id, *rest in sorted(found)
    ]


def within(logs: Sequence[Span], most_entries: int) -> list[Span]:
    """The first of these logs that hold no more entries than that together; at least one."""
    entries = 0
    for count, log in enumerate(logs):
        entries += log.entries
        if count and entries > most_entries:
            return list(logs[:count])
    return list(logs)
