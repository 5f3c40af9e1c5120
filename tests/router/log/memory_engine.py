"""Adapts the in-memory double of other tests to the log interface, so that the same suite checks it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from trunkline_router.core.values.log_records import Page, PageRequest, Transaction
from trunkline_router.core.values.stored_records import Registered, StoredDeadLetter, StoredReceipt
from trunkline_router.core.values.topics import Position, TopicKey

from tests.router.log.engines import NOW_MS
from tests.support.memory_log import MemoryLog


class MemoryEngine:
    """A MemoryLog behind the log interface."""

    can_encrypt = False

    def __init__(self) -> None:
        self._log = MemoryLog()
        self._log.now_ms = NOW_MS

    async def append(self, transaction: Transaction) -> None:
        self._log.append(transaction)

    async def heads(self, topics: Sequence[TopicKey]) -> list[Position]:
        return [self._log.head(topic) for topic in topics]

    async def read(self, requests: Sequence[PageRequest]) -> list[Page]:
        return [self._log.read(request) for request in requests]

    async def receipts(self, topic: TopicKey, after: str, limit: int) -> list[StoredReceipt]:
        return sorted(each for each in self._log.receipts(topic) if each.user > after)[:limit]

    async def dead_letters(self, tenant: str, agent: str, after: int, limit: int) -> list[StoredDeadLetter]:
        return list(self._log.dead.values())

    async def open_messages(self) -> list[Any]:
        return self._log.open_messages()

    async def registered(self) -> Registered:
        return self._log.registered()

    async def close(self) -> None:
        pass

    def __getattr__(self, name: str) -> Any:
        operation = getattr(self._log, name)

        async def call(*args: Any) -> Any:
            return operation(*args)

        return call
