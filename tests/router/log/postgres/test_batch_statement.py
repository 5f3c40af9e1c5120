"""One statement writes what SQLite's engine writes with one statement after the other."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from trunkline_router.core.values.log_records import (
    AppendResult,
    Attempts,
    Checkpoint,
    DeadLettered,
    DeliveredPosition,
    EntryKind,
    Fork,
    PendingEntry,
    Producer,
    Transaction,
    Withdrawal,
)
from trunkline_router.core.values.topics import NO_TARGET, PERSON, TopicKey

from tests.router.log.engines import a_key, deltas, edit, end, pending_entry, position, read, recall
from tests.router.log.postgres.twin_logs import TABLES, TwinLogs


@pytest.fixture
async def twins(tmp_path: Path) -> AsyncIterator[TwinLogs]:
    twins = await TwinLogs.open(tmp_path)
    yield twins
    await twins.close()


class Subject:
    """Rows at which two kinds can meet: a message with a delivery, and an open message with deltas."""

    def __init__(self, topic: TopicKey) -> None:
        self.topic = topic
        self.key = a_key()
        self.question = pending_entry(topic, key=self.key, deliver=True)
        self.open = pending_entry(topic, producer=Producer("worker", 1))

    async def commit(self, twins: TwinLogs) -> None:
        await twins.append(Transaction([self.question, self.open]))
        checkpoint = Checkpoint(self.topic, 2, Producer("worker", 1), deltas("first"))
        await twins.append(Transaction(checkpoints=[checkpoint]))

    def reply(self, number: int) -> PendingEntry:
        reply = pending_entry(self.topic, producer=Producer(f"worker {number}", 1))
        reply.message.reply_to = self.question.message.id
        return reply


#: Add a row of each kind about a subject to a transaction; the number tells two of one kind apart.
KINDS: dict[str, Callable[[Transaction, Subject, int], Any]] = {
    "settled": lambda t, s, _: t.settled.append(s.question.delivery_id),
    "attempts": lambda t, s, n: t.attempts.append(Attempts(s.question.delivery_id, n)),
    "dead_lettered": lambda t, s, n: t.dead_lettered.append(
        DeadLettered(s.question.delivery_id, n, f"reason {n}")
    ),
    "withdrawn": lambda t, s, _: t.withdrawn.append(Withdrawal(s.topic, 1)),
    "reply": lambda t, s, n: t.entries.append(s.reply(n)),
    "ended": lambda t, s, n: t.entries.append(end(s.open, f"end {n}")),
    "edited": lambda t, s, n: t.entries.append(edit(s.open, f"edit {n}")),
    "recalled": lambda t, s, _: t.entries.append(recall(s.open)),
    "checkpoint": lambda t, s, n: t.checkpoints.append(
        Checkpoint(s.topic, 2, Producer("other", n), deltas(f"deltas {n}"))
    ),
    "producer": lambda t, s, n: t.checkpoints.append(Checkpoint(s.topic, 2, Producer("third", n))),
    "read": lambda t, s, n: t.entries.append(read(s.topic, position(s.question)._replace(seq=n))),
    "delivered": lambda t, s, n: t.delivered.append(
        DeliveredPosition(s.topic, "alice", position(s.question)._replace(seq=3 - n))
    ),
    "key in use": lambda t, s, n: t.entries.append(pending_entry(s.topic, f"again {n}", key=s.key)),
    "message": lambda t, s, n: t.entries.append(pending_entry(s.topic, f"new {n}", deliver=True)),
    "fork": lambda t, s, _: t.forks.append(Fork(s.topic, position(s.question).epoch)),
}


async def test_each_pair_of_kinds_of_rows_may_meet_at_one_row(twins: TwinLogs) -> None:
    for number, (first, second) in enumerate(itertools.product(KINDS, repeat=2)):
        subject = Subject(("acme", f"echo {number % 3}", "web", PERSON, f"user {number}"))
        await subject.commit(twins)
        transaction = Transaction()
        KINDS[first](transaction, subject, 1)
        KINDS[second](transaction, subject, 2)
        try:
            await twins.append(transaction)
            await twins.compare()
        except Exception as error:
            error.add_note(f"{first} and {second}")
            raise
    assert twins.tables_with_rows() == set(TABLES)


TOPICS: list[TopicKey] = [
    ("acme", "echo", "web", PERSON, "alice"),
    ("acme", "echo", "web", PERSON, 'é"\\,{1}NULL \U0001f600'),
    ("acme", "", "", NO_TARGET, ""),
]
topics = st.sampled_from(TOPICS)
#: Index of a message among those committed so far, counted from the newest.
picks = st.integers(0, 5)
users = st.sampled_from(["alice", "bob", "NULL"])
delivery_ids = st.integers(1, 4)
WORKER = Producer("worker", 1)
producers = st.builds(Producer, st.sampled_from(["worker", "other"]), st.integers(1, 3))
attempts = st.integers(0, 5)
new_entries = st.fixed_dictionaries(
    {
        "topic": topics,
        "text": st.text(max_size=3),
        "key": st.sampled_from([None, None, b"a", b"b"]),
        "digest": st.sampled_from([b"", b"one"]),
        "deliver": st.booleans(),
        "producer": st.none() | producers,
    }
)
#: Changes and reads of messages, and replies to them.
later_entries = st.tuples(st.sampled_from(["end", "edit", "recall", "read", "reply"]), picks, users)
transactions = st.fixed_dictionaries(
    {
        "entries": st.lists(new_entries, max_size=4),
        "later": st.lists(later_entries, max_size=4),
        "settled": st.lists(delivery_ids, max_size=2),
        "attempts": st.lists(st.builds(Attempts, delivery_ids, attempts), max_size=3),
        "dead": st.lists(st.builds(DeadLettered, delivery_ids, attempts, st.sampled_from("xy")), max_size=3),
        "withdrawn": st.lists(picks, max_size=3),
        "checkpoints": st.lists(st.tuples(picks, producers, st.sampled_from(["", "a", "b"])), max_size=3),
        "delivered": st.lists(st.tuples(picks, users), max_size=3),
        "forks": st.lists(picks, max_size=2),
    }
)


def later_entry(kind: str, target: PendingEntry, user: str) -> PendingEntry:
    if kind == "read":
        return read(target.topic, position(target), user)
    if kind == "reply":
        reply = pending_entry(target.topic, producer=Producer("worker", 1))
        reply.message.reply_to = target.message.id
        return reply
    return {"end": end, "edit": edit, "recall": recall}[kind](target)


def new_entry(topic: TopicKey, key: bytes | None, tenant: str, **drawn: Any) -> PendingEntry:
    """An entry of a tenant; its key is the tenant's, too."""
    key = key and key + tenant.encode().rjust(15)
    return pending_entry((tenant, *topic[1:]), key=key, **drawn)


def transaction_of(
    drawn: dict[str, Any], committed: list[PendingEntry], tenant: str, base: int
) -> Transaction:
    """Make a transaction of a tenant without other deliveries than those with ids above `base`."""

    def pick(number: int) -> PendingEntry:
        return committed[-1 - number % len(committed)]

    transaction = Transaction(
        [new_entry(tenant=tenant, **each) for each in drawn["entries"]],
        [base + number for number in drawn["settled"]],
        [row._replace(delivery_id=base + row.delivery_id) for row in drawn["attempts"]],
        [row._replace(delivery_id=base + row.delivery_id) for row in drawn["dead"]],
    )
    transaction.entries += [later_entry(kind, pick(number), user) for kind, number, user in drawn["later"]]
    for number in drawn["withdrawn"]:
        transaction.withdrawn.append(Withdrawal(pick(number).topic, pick(number).message.position.seq))
    for number, producer, text in drawn["checkpoints"]:
        target = pick(number)
        added = deltas(text) if text else b""
        transaction.checkpoints.append(Checkpoint(target.topic, target.message.position.seq, producer, added))
    for number, user in drawn["delivered"]:
        target = pick(number)
        transaction.delivered.append(DeliveredPosition(target.topic, user, position(target)))
    for number in drawn["forks"]:
        target = pick(number)
        transaction.forks.append(Fork(target.topic, target.message.position.epoch))
    return transaction


async def commit_all(twins: TwinLogs, all_drawn: list[dict[str, Any]]) -> None:
    tenant, base = next(tenants), twins.delivery_id()
    topic = (tenant, *TOPICS[0][1:])
    first = [pending_entry(topic, deliver=True) for _ in range(3)]
    committed = (await twins.append(Transaction([*first, pending_entry(topic, producer=WORKER)]))).entries
    for drawn in all_drawn:
        transaction = await twins.append(transaction_of(drawn, committed, tenant, base))
        committed += [
            each
            for each in transaction.entries
            if each.kind is EntryKind.MESSAGE and each.result is AppendResult.COMMITTED
        ]
        await twins.compare()


tenants = map("acme{}".format, itertools.count(1))


def test_any_transactions_leave_the_same_rows(tmp_path: Path) -> None:
    with asyncio.Runner() as runner:
        twins = runner.run(TwinLogs.open(tmp_path))

        @settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
        @given(st.lists(transactions, min_size=1, max_size=4))
        def run(all_drawn: list[dict[str, Any]]) -> None:
            runner.run(commit_all(twins, all_drawn))

        try:
            run()
        finally:
            runner.run(twins.close())
