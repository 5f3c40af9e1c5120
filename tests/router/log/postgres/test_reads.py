"""Reads return the same from PostgreSQL as from SQLite, and no argument fails."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import run_state_machine_as_test
from structlog.testing import capture_logs
from trunkline.v1.message_pb2 import Message
from trunkline_router.core.values.log_records import DeadLettered, Fork, PageRequest, Producer, Transaction
from trunkline_router.core.values.stored_records import AuditQuery
from trunkline_router.core.values.topics import EMPTY, GROUP, Position, TopicKey
from trunkline_router.log.data_keys import DataKeys
from trunkline_router.log.interface import Log, LogDamaged
from trunkline_router.log.postgres import page_rows
from trunkline_router.log.postgres.database import PostgresDatabase

from tests.router.log.engines import ALICE, BOB, DATA_KEYS, append, clock, edit, pending_entry, position, read
from tests.router.log.postgres.copied_log import copy_log
from tests.router.log.test_model import TOPICS, USERS, LogMachine

#: Pages that are compared of each log.
PAGES = 60


@asynccontextmanager
async def postgres_log(dsn: str, data_keys: DataKeys | None = None) -> AsyncIterator[Log]:
    database = PostgresDatabase(dsn, data_keys=lambda: data_keys, clock=clock)
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


#: Few: the model is tested with all operations of this engine, too.
@pytest.mark.parametrize(("data_keys", "examples"), [(None, 4), (DATA_KEYS, 2)])
def test_both_engines_read_the_same_rows_alike(
    data_keys: DataKeys | None, examples: int, postgres_schema: str
) -> None:
    asyncio.run(install(postgres_schema))
    engine = "sqlite-encrypted" if data_keys else "sqlite"
    names = {"engine": engine, "dsn": postgres_schema, "data_keys": data_keys}
    run_state_machine_as_test(
        type("Machine", (ReadsMachine,), names),
        settings=settings(
            max_examples=examples,
            stateful_step_count=25,
            deadline=None,
            suppress_health_check=[HealthCheck.too_slow],
        ),
    )


#: No row can contain them.
ODD = ("\0", "a\0", "\ud800", "x\udfff")


@pytest.mark.parametrize("odd", ODD)
async def test_a_text_that_no_row_contains_matches_nothing(odd: str, postgres_schema: str) -> None:
    async with postgres_log(postgres_schema) as log:
        (first,) = await append(log, pending_entry(deliver=True))
        topic: TopicKey = ("acme", "echo", "web", GROUP, odd)
        pages = [PageRequest(topic, 9), PageRequest(ALICE, 9, after=Position(odd, 1)), PageRequest(ALICE, 9)]
        unknown, invalid, found = await log.read(pages)
        assert (unknown.entries, unknown.head, unknown.valid) == ([], EMPTY, True)
        assert (invalid.entries, invalid.head, invalid.valid) == ([], position(first), False)
        assert len(found.entries) == 1
        assert await log.message("acme", odd) is None
        assert await log.message(odd, first.message.id) is None
        users = [(topic, "alice"), (ALICE, odd), (ALICE, "alice")]
        nothing = Position(position(first).epoch, 0)
        assert await log.delivered(users) == [EMPTY, nothing, nothing]
        assert await log.receipts(topic, "", 9) == []
        assert await log.receipts(ALICE, odd, 9) == []
        for tenant, agent in ((odd, "echo"), ("acme", odd)):
            assert await log.deliveries(tenant, agent, 0, 9) == []
            assert await log.dead_letters(tenant, agent, 0, 9) == []
            assert await log.count_waiting(tenant, agent) == 0
        assert await log.backlogs(odd) == []
        assert await log.audit(AuditQuery(odd, "", 0, 0, 9)) == []
        assert await log.audit(AuditQuery("", odd, 0, (1 << 64) - 1, 9)) == []


@pytest.mark.parametrize(("after", "left"), [("\0", 3), ("a\0", 2), ("ab\ud800", 1)])
async def test_receipts_continue_after_any_text(after: str, left: int, postgres_schema: str) -> None:
    async with postgres_log(postgres_schema) as log:
        (first,) = await append(log, pending_entry())
        names = ["a", "ab", "b"]
        await append(log, *(read(ALICE, position(first), name) for name in names))
        assert [receipt.user for receipt in await log.receipts(ALICE, after, 9)] == names[-left:]


async def test_a_changed_row_is_an_error_that_leaves_its_neighbours(postgres_schema: str) -> None:
    async with postgres_log(postgres_schema) as log:
        entries = await append(log, *(pending_entry(text=f"{n}", deliver=True) for n in range(5)))
        await append(log, pending_entry(BOB))
        await append(log, pending_entry(BOB, producer=Producer("p", 1)))
        await append(log, edit(entries[4]))
        await execute(
            postgres_schema, "UPDATE messages SET body = body || '\\x00' WHERE seq = 3 OR topic_id = 2"
        )
        with capture_logs() as lines:
            pages = [
                PageRequest(ALICE, 9),
                PageRequest(ALICE, 9, after=position(entries[2])),
                PageRequest(ALICE, 2),
            ]
            page, after, newest = await log.read(pages)
            assert (page.entries, page.valid, page.damaged_seq) == ([], False, 3)
            assert [entry.seq for entry in after.entries] == [4, 5, 6]
            assert [entry.seq for entry in newest.entries] == [5, 6]
            with pytest.raises(LogDamaged):
                await log.message("acme", entries[2].message.id)
            deliveries = await log.deliveries("acme", "echo", 0, 4)
            assert await log.open_messages() == []
        assert [each.delivery_id for each in deliveries] == [1, 2, 4, 5]
        assert {(line["topic_id"], line["seq"]) for line in lines} == {(1, 3), (2, 2)}


async def test_a_damaged_reason_is_not_worth_the_dead_letter(postgres_schema: str) -> None:
    async with postgres_log(postgres_schema) as log:
        (first,) = await append(log, pending_entry(deliver=True))
        await log.append(Transaction(dead_lettered=[DeadLettered(first.delivery_id, 1, "why")]))
        await execute(postgres_schema, "UPDATE dead_letters SET reason = '\\x7768ff'")
        [letter] = await log.dead_letters("acme", "echo", 0, 9)
        assert (letter.reason, letter.message) == ("wh\ufffd", first.stored)


async def test_a_page_is_of_one_state_of_the_log(postgres_schema: str) -> None:
    """The message has the text of the newest edit in the page, however many edits are committed meanwhile."""
    async with postgres_log(postgres_schema) as log:
        (first,) = await append(log, pending_entry(text="0"))

        seen: set[int] = set()

        async def edit_it() -> None:
            number = 0
            while len(seen) < 10:
                number += 1
                await append(log, edit(first, str(number)))

        editing = asyncio.create_task(edit_it())
        all_entries = PageRequest(ALICE, 10_000, after=EMPTY)
        while not editing.done():
            for (page,) in await asyncio.gather(*(log.read([all_entries]) for _ in range(3))):
                message = Message.FromString(page.entries[0].body)
                assert message.parts[0].text.text == str(len(page.entries) - 1)
                assert page.head.seq == len(page.entries)
                seen.add(page.head.seq)
        await editing


async def test_pages_are_the_same_in_any_portions(
    postgres_schema: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with postgres_log(postgres_schema) as log:
        topics: list[TopicKey] = [("acme", "echo", "web", GROUP, str(n)) for n in range(7)]
        await append(log, *(pending_entry(topic, "x" * 50) for topic in topics for _ in range(3)))
        pages = [PageRequest(topic, 9, max_bytes=100) for topic in topics]
        whole = await log.read(pages)
        assert [len(page.entries) for page in whole] == [1] * 7
        assert await log.read([]) == []
        for portion_bytes in (1, 100, 250, 699):
            monkeypatch.setattr(page_rows, "_PORTION_BYTES", portion_bytes)
            assert await log.read(pages) == whole


async def execute(dsn: str, statement: str) -> None:
    connection = await asyncpg.connect(dsn)
    await connection.execute(statement)
    await connection.close()
