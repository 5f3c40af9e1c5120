"""Reads return the same from PostgreSQL as from SQLite, and no argument fails."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import run_state_machine_as_test
from trunkline_router.core.values.log_records import Fork, PageRequest, Transaction
from trunkline_router.core.values.topics import EMPTY, Position
from trunkline_router.log.data_keys import DataKeys
from trunkline_router.log.interface import Log
from trunkline_router.log.postgres.database import PostgresDatabase

from tests.router.log.engines import clock, pending_entry
from tests.router.log.postgres.copied_log import copy_log
from tests.router.log.test_model import TOPICS, USERS, LogMachine

#: Pages that are compared of each log.
PAGES = 60


@asynccontextmanager
async def postgres_log(dsn: str, data_keys: DataKeys | None = None) -> AsyncIterator[Log]:
    database = PostgresDatabase(dsn, data_keys=data_keys, clock=clock)
    owned = await database.acquire(lambda: None)
    try:
        yield owned.log
    finally:
        await owned.log.close()
        await owned.lease.release()
        await database.close()


def requests(heads: list[Position], seed: int) -> list[PageRequest]:
    """Pages of all kinds, at positions that are valid or not."""
    rng = random.Random(seed)
    pages = []
    for _ in range(PAGES):
        number = rng.randrange(len(TOPICS))
        epoch = rng.choice([heads[number].epoch] * 8 + ["", "0123456789abc", "\0", "\ud800"])
        at = rng.choice(
            [EMPTY, Position(epoch, rng.choice([-1, 0, 1, 2, 3, 5, 8, 13, 1 << 63, (1 << 64) - 1]))]
        )
        side: dict[str, Any] = rng.choice([{}, {"after": at}, {"before": at}])
        limit, max_bytes = rng.choice([0, 1, 2, 3, 1000]), rng.choice([0, 1, 100, 300, 1000, 1 << 20])
        pages.append(
            PageRequest(TOPICS[number], limit, max_bytes=max_bytes, messages_only=rng.random() < 0.4, **side)
        )
    return pages


async def all_reads(log: Log, seed: int) -> list[Any]:
    """The results of reads with the same arguments for each seed."""
    heads = await log.heads(TOPICS)
    ids = [f"{head.epoch}-{seq}" for head in heads for seq in range(1, 8)]
    found: list[Any] = [
        await log.read(requests(heads, seed)),
        [await log.message(tenant, each) for tenant in ("acme", "evil") for each in ids],
        sorted(await log.open_messages()),
        await log.delivered([(topic, user) for topic in TOPICS for user in USERS]),
        [await log.receipts(topic, after, 2) for topic in TOPICS for after in ("", "alice", "b")],
        [await log.expired(after, limit) for after in range(9) for limit in (1, 2, 1000)],
    ]
    for tenant, agent in sorted({topic[:2] for topic in TOPICS}):
        found.append(sorted(await log.backlogs(tenant)))
        found.append(await log.count_waiting(tenant, agent))
        for after, limit in ((0, 1000), (0, 2), (3, 2), ((1 << 64) - 1, 2)):
            found.append(await log.deliveries(tenant, agent, after, limit))
            found.append(await log.dead_letters(tenant, agent, after, limit))
    return found


class ReadsMachine(LogMachine):
    """A log in SQLite that is copied in the end, and then read from both engines."""

    dsn: str
    data_keys: DataKeys | None

    def teardown(self) -> None:
        self.run(self.compare())
        super().teardown()

    async def compare(self) -> None:
        # The model knows no forks.
        heads = await self.log.heads(TOPICS)
        forks = [Fork(topic, head.epoch) for topic, head in zip(TOPICS[1:4], heads[1:4], strict=True)]
        await self.log.append(Transaction([pending_entry(TOPICS[1])], forks=forks))
        await self.log.close()
        await copy_log(Path(self.folder.name) / "log.db", self.dsn)
        self.log = await self.opener()
        seed = len(self.said)
        expected = await all_reads(self.log, seed)
        async with postgres_log(self.dsn, self.data_keys) as copied:
            found = await all_reads(copied, seed)
        for one, other in zip(found, expected, strict=True):
            assert one == other


async def install(dsn: str) -> None:
    async with postgres_log(dsn):
        pass


@pytest.mark.long
@pytest.mark.parametrize("data_keys", [None])
def test_both_engines_read_the_same_rows_alike(data_keys: DataKeys | None, postgres_schema: str) -> None:
    asyncio.run(install(postgres_schema))
    engine = "sqlite-encrypted" if data_keys else "sqlite"
    names = {"engine": engine, "dsn": postgres_schema, "data_keys": data_keys}
    run_state_machine_as_test(
        type("Machine", (ReadsMachine,), names),
        settings=settings(
            max_examples=10,
            stateful_step_count=25,
            deadline=None,
            suppress_health_check=[HealthCheck.too_slow],
        ),
    )
