"""A log of each engine, given the same transactions: SQLite's writes one statement after the other."""

from __future__ import annotations

import copy
import itertools
import sqlite3
from pathlib import Path
from typing import Any

import pytest
from trunkline_router.core.values.log_records import Transaction
from trunkline_router.core.values.topics import Position, TopicKey
from trunkline_router.log import batch
from trunkline_router.log.interface import Log

from tests.router.log.engines import open_postgres, open_sqlite

#: Columns by table, in both engines: their names differ where `user` is a reserved word.
TABLES = {
    "topics": "topic_id, tenant, agent, platform, kind, target, epoch, pruned, forked",
    "former_epochs": "topic_id, first_seq, last_seq, epoch",
    "messages": "topic_id, seq, created_ms, role, author_user, body, crc",
    "events": "topic_id, seq, created_ms, change, message_seq, {user}, body, crc",
    "open_messages": "topic_id, seq, producer, producer_epoch",
    "open_deltas": "topic_id, seq, deltas",
    "receipts": "topic_id, {user}, delivered, read, updated_ms",
    "cancelled_messages": "topic_id, seq, cancelled_ms",
    "idempotency": "key, digest, epoch, seq, connections, created_ms",
    "deliveries": "delivery_id, tenant, agent, topic_id, seq, attempts, expires_ms",
    "dead_letters": "delivery_id, tenant, agent, topic_id, seq, attempts, reason, given_up_ms",
}


class TwinLogs:
    """Appends each transaction to both logs, and compares the results and then the tables."""

    def __init__(self, folder: Path, sqlite: Log, postgres: Log) -> None:
        self.sqlite: Any = sqlite
        self.postgres: Any = postgres
        self._file = sqlite3.connect(folder / "log.db")
        self._epochs = itertools.count(1)

    @classmethod
    async def open(cls, folder: Path, version: int = 18) -> TwinLogs:
        return cls(folder, await open_sqlite(folder)(), await open_postgres(folder, version)())

    async def close(self) -> None:
        self._file.close()
        await self.sqlite.close()
        await self.postgres.close()

    async def append(self, transaction: Transaction) -> Transaction:
        """Append a transaction; its entries are completed by SQLite's log."""
        twin = copy.deepcopy(transaction)
        first = next(self._epochs) * 1000
        for log, each in ((self.sqlite, transaction), (self.postgres, twin)):
            epochs = map("{:013}".format, itertools.count(first))
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(batch, "new_epoch", epochs.__next__)
                await log.append(each)
        assert _results(twin) == _results(transaction)
        return transaction

    async def compare(self) -> None:
        """Compare all rows."""
        for table, columns in TABLES.items():
            assert await self._postgres_rows(table, columns) == self._sqlite_rows(table, columns), table

    def delivery_id(self) -> int:
        """The highest id of a delivery so far."""
        counters = self.sqlite._appender.counters
        assert counters == self.postgres._appender.counters
        return int(counters.delivery_id)

    def tables_with_rows(self) -> set[str]:
        return {table for table, columns in TABLES.items() if self._sqlite_rows(table, columns)}

    def _sqlite_rows(self, table: str, columns: str) -> list[tuple[Any, ...]]:
        query = f"SELECT {columns.format(user='user')} FROM {table}"
        if table == "idempotency":
            query += f" UNION ALL SELECT {columns} FROM recent_keys"
        if table == "open_deltas":
            query += " ORDER BY rowid"
        query = query.replace("reason", "CAST(reason AS BLOB)")
        rows = self._file.execute(query).fetchall()
        return rows if table == "open_deltas" else sorted(rows)

    async def _postgres_rows(self, table: str, columns: str) -> list[tuple[Any, ...]]:
        query = f"SELECT {columns.format(user='user_name')} FROM {table}"
        if table == "open_deltas":
            query += " ORDER BY delta_id"
        rows = [tuple(row) for row in await self.postgres._writer.read(query)]
        return rows if table == "open_deltas" else sorted(rows)

    async def heads(self, *topics: TopicKey) -> list[Position]:
        heads: list[Position] = await self.sqlite.heads(topics)
        assert await self.postgres.heads(topics) == heads
        return heads


def _results(transaction: Transaction) -> Any:
    """The part of a transaction that a log completes."""
    entries = [
        (
            each.result,
            each.message.SerializeToString(deterministic=True),
            each.change and each.change.SerializeToString(deterministic=True),
            each.read and each.read.SerializeToString(deterministic=True),
            each.delivery_id,
            each.expires_ms,
            each.connections,
            each.is_cancelled,
            each.stored,
        )
        for each in transaction.entries
    ]
    return entries, [each.found for each in transaction.withdrawn], [f.position for f in transaction.forks]
