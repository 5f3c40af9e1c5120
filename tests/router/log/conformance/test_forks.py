"""Forks of single logs: seqs continue in a new epoch, and nothing of the former one is valid but ids."""

from __future__ import annotations

from typing import Any

from trunkline.v1.message_pb2 import Message
from trunkline_router.core.values.log_records import Fork, PageRequest, Producer, Transaction, Withdrawal
from trunkline_router.core.values.topics import EMPTY, Position

from tests.router.log.engines import ALICE, BOB, append, edit, end, pending_entry, position, read


async def test_a_fork_comes_before_the_entries_of_its_transaction(any_log: Any) -> None:
    first, second = await append(any_log, pending_entry(), pending_entry())
    other, *_ = await append(any_log, pending_entry(BOB))
    fork = Fork(ALICE, position(first).epoch)
    third = pending_entry()
    await any_log.append(Transaction([third], forks=[fork]))
    assert fork.position is not None
    assert fork.position.seq == 2
    assert fork.position.epoch != position(first).epoch
    assert position(third) == Position(fork.position.epoch, 3)
    assert await any_log.heads([ALICE, BOB]) == [position(third), position(other)]
    (page,) = await any_log.read([PageRequest(ALICE, 9, after=EMPTY)])
    messages = [Message.FromString(entry.body) for entry in page.entries]
    assert [each.position.epoch for each in messages] == [fork.position.epoch] * 3
    assert [each.id for each in messages] == [each.message.id for each in (first, second, third)]
    (page,) = await any_log.read([PageRequest(ALICE, 9, after=position(second))])
    assert not page.valid
    assert await any_log.message("acme", second.message.id) is not None


async def test_a_fork_of_another_epoch_does_nothing(any_log: Any) -> None:
    (first,) = await append(any_log, pending_entry())
    for epoch, topic in (("other", ALICE), (position(first).epoch, BOB)):
        fork = Fork(topic, epoch)
        await any_log.append(Transaction(forks=[fork]))
        assert fork.position is None
    assert await any_log.heads([ALICE, BOB]) == [position(first), EMPTY]


async def test_what_was_read_before_a_fork_can_still_be_changed(log: Any) -> None:
    opened, first = await append(log, pending_entry(producer=Producer("p", 1)), pending_entry())
    await log.append(Transaction(forks=[Fork(ALICE, position(first).epoch)]))
    ended, edited, seen = await append(log, end(opened), edit(first), read(ALICE, position(first)))
    (head,) = await log.heads([ALICE])
    assert [position(each) for each in (ended, edited, seen)] == [
        Position(head.epoch, seq) for seq in (3, 4, 5)
    ]
    assert await log.open_messages() == []
    assert await log.message("acme", first.message.id) == edited.message.SerializeToString()


async def test_a_cancelled_question_stays_cancelled_after_a_fork(log: Any) -> None:
    first, other = await append(log, pending_entry(deliver=True), pending_entry(BOB, deliver=True))
    await log.append(Transaction(withdrawn=[Withdrawal(ALICE, 1)]))
    await log.append(Transaction(forks=[Fork(ALICE, position(first).epoch)]))
    replies = [pending_entry(producer=Producer(f"p{n}", 1)) for n in range(3)]
    (head,) = await log.heads([ALICE])
    asked = (first.message.id, other.message.id, f"{head.epoch}-1")
    for reply, message_id in zip(replies, asked, strict=True):
        reply.message.reply_to = message_id
    await append(log, *replies)
    assert [each.is_cancelled for each in replies] == [True, False, False]
    assert [each.is_cancelled for each in await log.open_messages()] == [True, False, False]
