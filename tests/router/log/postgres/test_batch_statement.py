"""One statement writes what SQLite's engine writes with one statement after the other."""

from __future__ import annotations

import asyncio
import itertools
import tempfile
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
    """What two kinds of rows can meet at: a message with a delivery, and an open message with deltas."""

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
delivery_ids = st.integers(1, 8)
producers = st.builds(Producer, st.sampled_from(["worker", "other"]), st.integers(1, 3))
attempts = st.integers(0, 5)
new_entries = st.builds(
    pending_entry,
    topics,
    st.text(max_size=3),
    key=st.sampled_from([None, None, b"a" * 16, b"b" * 16]),
    digest=st.sampled_from([b"", b"one"]),
    deliver=st.booleans(),
    producer=st.none() | producers,
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
        "forks": st.lists(picks, max_size=1),
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


def transaction_of(drawn: dict[str, Any], committed: list[PendingEntry]) -> Transaction:
    def pick(number: int) -> PendingEntry:
        return committed[-1 - number % len(committed)]

    transaction = Transaction(drawn["entries"], drawn["settled"], drawn["attempts"], drawn["dead"])
    if not committed:
        return transaction
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


async def commit_all(folder: Path, all_drawn: list[dict[str, Any]]) -> None:
    twins = await TwinLogs.open(folder)
    committed: list[PendingEntry] = []
    try:
        for drawn in all_drawn:
            transaction = await twins.append(transaction_of(drawn, committed))
            committed += [
                each
                for each in transaction.entries
                if each.kind is EntryKind.MESSAGE and each.result is AppendResult.COMMITTED
            ]
            await twins.compare()
    finally:
        await twins.close()


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(transactions, min_size=1, max_size=4))
def test_any_transactions_leave_the_same_rows(all_drawn: list[dict[str, Any]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(commit_all(Path(folder), all_drawn))
