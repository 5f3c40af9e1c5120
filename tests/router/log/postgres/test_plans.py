"""Every statement of the writer finds its rows by an index, also if it was planned before there were any."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from trunkline_router.log.postgres.connector import _SETTINGS, WRITER_SETTINGS

from tests.router.log.postgres.test_fenced_writes import WRITES, FilledLog, filled
from tests.support.postgres import shared_server

#: First column of each index of a table that may be large.
LEADING = {
    "topics_pkey": "topic_id",
    "topics_tenant_agent_platform_kind_target_key": "tenant",
    "topics_epoch_key": "epoch",
    "former_epochs_pkey": "topic_id",
    "former_epochs_epoch_key": "epoch",
    "messages_pkey": "topic_id",
    "events_pkey": "topic_id",
    "open_messages_pkey": "topic_id",
    "open_deltas_pkey": "delta_id",
    "open_deltas_by_message": "topic_id",
    "receipts_pkey": "topic_id",
    "cancelled_messages_pkey": "topic_id",
    "cancelled_messages_by_time": "cancelled_ms",
    "idempotency_pkey": "key",
    "deliveries_pkey": "delivery_id",
    "deliveries_by_agent": "tenant",
    "dead_letters_pkey": "delivery_id",
    "dead_letters_by_agent": "tenant",
}
LARGE = {
    "topics",
    "former_epochs",
    "messages",
    "events",
    "open_messages",
    "open_deltas",
    "receipts",
    "cancelled_messages",
    "idempotency",
    "deliveries",
    "dead_letters",
}

#: Writes that leave little to the others.
DESTRUCTIVE = {"sweep", "reset", "pruning", "erasure of a user's logs", "erasure of a tenant"}

__all__ = ["filled"]


def nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield plan
    for child in plan.get("Plans", ()):
        yield from nodes(child)


def is_bounded(node: dict[str, Any]) -> bool:
    """Whether a node reads no more of a large table than an index, or a range of pages, selects."""
    if node.get("Relation Name") not in LARGE or node["Node Type"] == "ModifyTable":
        return True
    if node["Node Type"] == "Tid Range Scan":
        return "TID Cond" in node
    return LEADING[node["Index Name"]] in node.get("Index Cond", "") if "Index Name" in node else False


async def test_no_statement_of_the_writer_scans_a_large_table(filled: FilledLog) -> None:
    texts: set[str] = set()
    connection: Any = filled.log._writer._connection
    connection.add_query_logger(lambda record: texts.add(record.query))
    for name in sorted(WRITES, key=DESTRUCTIVE.__contains__):
        await WRITES[name](filled)
    assert len(texts) >= 30
    settings = {**_SETTINGS, **WRITER_SETTINGS, "search_path": filled.schema}
    prefix = "".join(f"SET {name} = '{value}';" for name, value in settings.items())
    for text in sorted(texts):
        output = shared_server().execute(f"{prefix} EXPLAIN (GENERIC_PLAN, FORMAT JSON) {text}")
        found = [node for node in nodes(json.loads(output)[0]["Plan"]) if not is_bounded(node)]
        assert not found, f"{json.dumps(found, indent=1)}\n{text}"
