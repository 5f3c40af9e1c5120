"""CommitQueue: order, counts, atomic writes, and entries dropped with an erased log."""

from __future__ import annotations

from typing import Any

import pytest
from trunkline.v1.frame_pb2 import ReadFrame
from trunkline.v1.message_pb2 import Change, Message
from trunkline_router.core.agents.settlement import AttemptCommit
from trunkline_router.core.commits import commit_queue
from trunkline_router.core.commits.commit_queue import AtomicWrite, CommitQueue
from trunkline_router.core.values.log_records import (
    Attempts,
    Checkpoint,
    DeliveredPosition,
    PendingEntry,
    Producer,
    Transaction,
    Withdrawal,
)
from trunkline_router.core.values.topics import PERSON, Position, TopicKey

ALICE: TopicKey = ("t", "a", "w", PERSON, "alice")
BOB: TopicKey = ("t", "a", "w", PERSON, "bob")


def pending_entry(topic: TopicKey = ALICE, **more: object) -> PendingEntry:
    """An entry to commit."""
    return PendingEntry(topic, Message(client_id="x" * 10), **more)  # type: ignore[arg-type]


def test_entries_and_writes_leave_in_order_and_are_no_longer_counted() -> None:
    queue = CommitQueue(max_entries=2)
    first, reply, last = pending_entry(), pending_entry(), pending_entry()
    write = AtomicWrite(Transaction(entries=[reply], settled=[7], attempts=[Attempts(8, 1)]), AttemptCommit())
    queue.add(first, 5)
    queue.add_write(write)
    assert not queue.is_full
    queue.add(last, 5)
    assert queue.is_full
    assert queue.entries == 3
    transaction, writes = queue.take()
    assert transaction.entries == [first, reply, last]
    assert (transaction.settled, transaction.attempts, writes) == ([7], [Attempts(8, 1)], [write])
    assert (queue.entries, queue.bytes, bool(queue), queue.is_full) == (0, 0, False, False)
    assert write.transaction.entries == [reply], "the rest of the transaction changes a write"


def test_a_transaction_is_bounded_and_an_atomic_write_is_not_divided(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(commit_queue, "MAX_BATCH_ENTRIES", 3)
    queue = CommitQueue()
    queue.add(pending_entry(), 1)
    queue.add_write(AtomicWrite(Transaction(entries=[pending_entry() for _ in range(5)]), AttemptCommit()))
    queue.add_write(AtomicWrite(Transaction(settled=[1]), AttemptCommit()))
    assert len(queue.take()[0].entries) == 6
    assert queue.take()[0].settled == [1]


def test_an_erased_log_gets_waiting_messages_and_nothing_that_refers_to_the_old_log() -> None:
    queue = CommitQueue()
    message, change, read = pending_entry(), pending_entry(change=Change()), pending_entry(read=ReadFrame())
    elsewhere = pending_entry(BOB, change=Change())
    for each in (message, change, read, elsewhere):
        queue.add(each, 10)
    for topic in (ALICE, BOB):
        checkpoint = Checkpoint(topic, 1, Producer("p", 1))
        delivered = DeliveredPosition(topic, "x", Position("e", 1))
        write = Transaction(
            settled=[1], checkpoints=[checkpoint], withdrawn=[Withdrawal(topic, 1)], delivered=[delivered]
        )
        queue.add_write(AtomicWrite(write, AttemptCommit()))
    assert queue.drop_changes(ALICE) == [change, read]
    assert (queue.entries, queue.bytes) == (2, 20)
    transaction, writes = queue.take()
    assert transaction.entries == [message, elsewhere]
    assert len(writes) == 2
    assert transaction.settled == [1, 1]
    left: list[Any] = [*transaction.checkpoints, *transaction.withdrawn, *transaction.delivered]
    assert [each.topic for each in left] == [BOB] * 3


def test_after_commit_calls_back_when_the_transactions_under_way_are_done() -> None:
    queue = CommitQueue()
    called: list[str] = []
    queue.after_commit(lambda: called.append("at once"))
    queue.take()
    queue.after_commit(lambda: called.append("one"))
    queue.take()
    queue.after_commit(lambda: called.append("two"))
    assert called == ["at once"]
    queue.transaction_done()
    assert called == ["at once", "one"]
    queue.transaction_done()
    assert called == ["at once", "one", "two"]
