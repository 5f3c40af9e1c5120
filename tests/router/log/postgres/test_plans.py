"""Every statement finds its rows by an index, also if it was planned before there were any."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from typing import Any

import pytest
from trunkline_router.core.values.log_records import PageRequest
from trunkline_router.core.values.topics import EMPTY
from trunkline_router.log.interface import Log
from trunkline_router.log.postgres.connector import _SETTINGS, WRITER_SETTINGS
from trunkline_router.log.postgres.read_pool import Connections

from tests.router.log.engines import ALICE
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
    return "Index Name" in node and LEADING[node["Index Name"]] in node.get("Index Cond", "")


def unbounded(texts: Iterable[str], settings: Mapping[str, str]) -> dict[str, list[dict[str, Any]]]:
    """Explain statements. Return the nodes that are not bounded, by statement."""
    prefix = "".join(f"SET {name} = '{value}';" for name, value in settings.items())
    found = {}
    for text in sorted(texts):
        output = shared_server().execute(f"{prefix} EXPLAIN (GENERIC_PLAN, FORMAT JSON) {text}")
        if bad := [node for node in nodes(json.loads(output)[0]["Plan"]) if not is_bounded(node)]:
            found[text] = bad
    return found


async def test_no_statement_of_the_writer_scans_a_large_table(filled: FilledLog) -> None:
    texts: set[str] = set()
    connection: Any = filled.log._writer._connection
    connection.add_query_logger(lambda record: texts.add(record.query))
    for name in sorted(WRITES, key=DESTRUCTIVE.__contains__):
        await WRITES[name](filled)
    assert len(texts) >= 30
    settings = {**_SETTINGS, **WRITER_SETTINGS, "search_path": filled.schema}
    assert unbounded(texts, settings) == {}


READS: dict[str, Callable[[Log], Awaitable[object]]] = {
    "pages": lambda log: log.read([PageRequest(ALICE, 9, after=EMPTY), PageRequest(ALICE, 9)]),
    "messages": lambda log: log.read([PageRequest(ALICE, 9, messages_only=True)]),
    "message": lambda log: log.message("acme", "0123456789abcdef-1"),
    "deliveries": lambda log: log.deliveries("acme", "echo", 0, 9),
    "dead letters": lambda log: log.dead_letters("acme", "echo", 0, 9),
    "waiting": lambda log: log.count_waiting("acme", "echo"),
    "expired": lambda log: log.expired(0, 9),
    "delivered": lambda log: log.delivered([(ALICE, "alice")]),
    "receipts": lambda log: log.receipts(ALICE, "", 9),
}


async def test_no_read_scans_a_large_table(filled: FilledLog, monkeypatch: pytest.MonkeyPatch) -> None:
    texts: set[str] = set()
    fetch = Connections.fetch

    async def noted(connections: Connections, text: str, *args: object) -> Any:
        texts.add(text)
        return await fetch(connections, text, *args)

    monkeypatch.setattr(Connections, "fetch", noted)
    for read in READS.values():
        await read(filled.log)
    assert len(texts) >= len(READS) - 2
    assert unbounded(texts, {**_SETTINGS, "search_path": filled.schema}) == {}
