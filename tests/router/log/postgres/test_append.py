"""Appends to PostgreSQL, beyond what every engine guarantees: unknown commits, ids, lost commits."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from trunkline_router.core.values.log_records import (
    AppendResult,
    DeadLettered,
    Fork,
    PendingEntry,
    Producer,
    Transaction,
    Withdrawal,
)
from trunkline_router.core.values.topics import PERSON, TopicKey
from trunkline_router.log.appender import Appender
from trunkline_router.log.encryption import MAX_SEALED, Encryption
from trunkline_router.log.interface import LogFenced
from trunkline_router.log.postgres import id_blocks
from trunkline_router.log.postgres.batch_writer import BatchWriter
from trunkline_router.log.postgres.dead_letter_replay import replay
from trunkline_router.log.postgres.forks import fork_all
from trunkline_router.log.postgres.id_blocks import IdBlocks
from trunkline_router.log.postgres.key_store import KeyStore
from trunkline_router.log.stored_values import StoredValues

from tests.router.log.engines import ALICE, BOB, a_key, clock, pending_entry, position
from tests.router.log.postgres.owned import fenced_writer, query
from tests.support.fault_proxy import FaultProxy
from tests.support.postgres import shared_server

FENCE = "UPDATE routers SET alive = false"
RESERVED = "SELECT reserved FROM id_blocks ORDER BY name DESC"


class Owner:
    """The part of an engine that appends for one owner of a log."""

    def __init__(self, writer: Any, ids: IdBlocks) -> None:
        self.writer = writer
        self.ids = ids
        self.encryption = Encryption(None)
        store = BatchWriter(writer, KeyStore(self.encryption, writer, clock), ids)
        self.appender = Appender(store, ids.counters, clock, self.encryption.is_same_content, 100)

    async def append(self, *entries: PendingEntry, **records: Any) -> list[PendingEntry]:
        await self.appender.append(Transaction(list(entries), **records))
        return list(entries)

    async def replay(self, *delivery_ids: int) -> list[int]:
        values = StoredValues(self.encryption)
        replayed = await replay(self.writer, values, self.ids, "acme", "echo", delivery_ids)
        return [each.delivery_id for each in replayed]


@asynccontextmanager
async def owner(dsn: str) -> AsyncIterator[Owner]:
    async with fenced_writer(dsn) as writer:
        ids = IdBlocks()
        await ids.open(writer)
        yield Owner(writer, ids)


async def reserved(dsn: str) -> tuple[int, int]:
    """The reserved topic_ids and delivery_ids."""
    topics, deliveries = await query(dsn, RESERVED)
    return topics["reserved"], deliveries["reserved"]


@pytest.mark.parametrize("forward", [True, False], ids=["after", "before"])
async def test_an_unknown_commit_knows_what_it_withdrew(postgres_schema: str, forward: bool) -> None:
    server = shared_server()
    with FaultProxy(server.address) as proxy:
        async with owner(postgres_schema.replace(server.address, proxy.address)) as log:
            question, gone = await log.append(pending_entry(deliver=True), pending_entry(BOB, deliver=True))
            await log.append(settled=[gone.delivery_id])
            reply = pending_entry(text="the one", producer=Producer("worker", 1))
            reply.message.reply_to = question.message.id
            withdrawals = [Withdrawal(ALICE, 1), Withdrawal(BOB, 1)]
            proxy.cut_at_request(b"the one", forward=forward)
            await log.append(reply, withdrawn=withdrawals)
            assert not proxy.awaits_request
    assert [each.found for each in withdrawals] == [True, False]
    assert reply.is_cancelled
    assert len(await query(postgres_schema, "SELECT FROM messages")) == 3


async def test_a_key_in_use_keeps_the_whole_statement_from_being_written(postgres_schema: str) -> None:
    async with owner(postgres_schema) as log:
        key = a_key()
        (first,) = await log.append(pending_entry(key=key))
        new, again = await log.append(pending_entry(BOB), pending_entry(key=key))
    assert (new.result, again.result) == (AppendResult.COMMITTED, AppendResult.DUPLICATE)
    assert position(again) == position(first)
    assert new.message.position.seq == 1
    assert len(await query(postgres_schema, "SELECT FROM messages")) == 2


async def test_ids_are_reserved_before_they_are_known(
    postgres_schema: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the statements that assign them, so that the next owner begins above them."""
    monkeypatch.setattr(id_blocks, "TOPIC_IDS", 2)
    monkeypatch.setattr(id_blocks, "DELIVERY_IDS", 0)
    delivery_ids: list[int] = []
    for name in range(3):
        async with owner(postgres_schema) as log:
            for number in range(5):
                topic: TopicKey = ("acme", "echo", "web", PERSON, f"{name} {number}")
                (entry,) = await log.append(pending_entry(topic, deliver=True))
                delivery_ids.append(entry.delivery_id)
                topics, deliveries = await reserved(postgres_schema)
                assert topics >= log.ids.counters.topic_id
                assert deliveries >= log.ids.counters.delivery_id
            await log.append(dead_lettered=[DeadLettered(entry.delivery_id, 1, "")])
            delivery_ids += await log.replay(entry.delivery_id)
            assert (await reserved(postgres_schema))[1] >= delivery_ids[-1]
    assert delivery_ids == sorted(set(delivery_ids))
    assert len(delivery_ids) == 18
    topic_ids = [row["topic_id"] for row in await query(postgres_schema, "SELECT topic_id FROM topics")]
    assert len(topic_ids) == 15


async def test_a_fenced_owner_reserves_and_replays_nothing(postgres_schema: str) -> None:
    async with owner(postgres_schema) as log:
        (dead,) = await log.append(pending_entry(deliver=True))
        await log.append(dead_lettered=[DeadLettered(dead.delivery_id, 1, "")])
        before = await reserved(postgres_schema)
        await query(postgres_schema, FENCE)
        for _ in range(2):
            log.ids.counters.delivery_id = before[1]
            with pytest.raises(LogFenced):
                await log.replay(dead.delivery_id)
            with pytest.raises(LogFenced):
                await log.append(pending_entry(BOB, deliver=True), settled=[dead.delivery_id])
    assert await reserved(postgres_schema) == before
    assert len(await query(postgres_schema, "SELECT FROM dead_letters")) == 1
    assert len(await query(postgres_schema, "SELECT FROM topics")) == 1


@pytest.mark.parametrize("is_proved", [True, False])
async def test_a_loss_that_a_link_proves_is_remembered(postgres_schema: str, is_proved: bool) -> None:
    """The other logs must be forked, too, by the next owner."""
    async with owner(postgres_schema) as log:
        (first,) = await log.append(pending_entry())
        await log.append(forks=[Fork(ALICE, position(first).epoch, is_proved)])
    marks = await query(postgres_schema, "SELECT is_older_copy FROM installation")
    assert [row["is_older_copy"] for row in marks] == [is_proved]


async def test_all_logs_are_forked_at_once(postgres_schema: str) -> None:
    """Seqs continue, and what may have been assigned in lost commits is not assigned again."""
    async with owner(postgres_schema) as log:
        first, second = await log.append(pending_entry(), pending_entry(BOB, producer=Producer("worker", 1)))
        await log.append(forks=[Fork(ALICE, position(first).epoch, is_proved=True)])
        heads = [head.position for head in (await log.appender.look_up([ALICE, BOB])).values()]
        topics, deliveries = await reserved(postgres_schema)
        await query(postgres_schema, "INSERT INTO tenant_keys VALUES ('acme', 1, '', '', 7, 0)")
        assert await fork_all(log.writer) == 2
    async with owner(postgres_schema) as log:
        found = await log.appender.look_up([ALICE, BOB])
        for topic, head in zip((ALICE, BOB), heads, strict=True):
            assert found[topic].position.seq == head.seq
            assert found[topic].position.epoch != head.epoch
        (third,) = await log.append(pending_entry(deliver=True))
        assert position(third) == found[ALICE].position._replace(seq=2)
    former = await query(postgres_schema, "SELECT topic_id, first_seq, last_seq, epoch FROM former_epochs")
    assert sorted(map(tuple, former)) == [(1, 1, 1, position(first).epoch), (2, 1, 1, position(second).epoch)]
    # Of ALICE's log, the second former epoch has no entry.
    assert [row["forked"] for row in await query(postgres_schema, "SELECT forked FROM topics")] == [1, 1]
    assert (await reserved(postgres_schema))[0] == topics + (1 << 32)
    assert third.delivery_id > deliveries + (1 << 32)
    (opened,) = await query(postgres_schema, "SELECT producer_epoch FROM open_messages")
    assert opened["producer_epoch"] > 1 << 40
    (key,) = await query(postgres_schema, "SELECT reserved FROM tenant_keys")
    assert key["reserved"] == MAX_SEALED
    (installed,) = await query(postgres_schema, "SELECT is_older_copy FROM installation")
    assert not installed["is_older_copy"]
