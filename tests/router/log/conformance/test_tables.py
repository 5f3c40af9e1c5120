"""Guarantees of every log engine: open messages, receipts and failing deliveries."""

from __future__ import annotations

from typing import Any

import pytest
from trunkline_router.core.values.log_records import (
    Attempts,
    Checkpoint,
    DeadLettered,
    DeliveredPosition,
    Page,
    PageRequest,
    PendingEntry,
    Producer,
    Transaction,
    Withdrawal,
)
from trunkline_router.core.values.stored_records import (
    Backlog,
    StoredDeadLetter,
    StoredDelivery,
    StoredOpen,
    StoredReceipt,
)
from trunkline_router.core.values.topics import EMPTY, USER, Position, TopicKey
from trunkline_router.log.interface import Log

from tests.router.log.engines import (
    ALICE,
    BOB,
    NOW_MS,
    OTHER_TENANT,
    Opener,
    a_key,
    append,
    deltas,
    edit,
    end,
    pending_entry,
    position,
    read,
)

WORKER = Producer("worker", 1)


async def page(log: Log, limit: int = 100, **where: Any) -> Page:
    return (await log.read([PageRequest(ALICE, limit, **where)]))[0]


async def checkpoint(log: Log, one: PendingEntry, text: str = "", producer: Producer = WORKER) -> None:
    added = deltas(text) if text else b""
    await log.append(
        Transaction(checkpoints=[Checkpoint(one.topic, one.message.position.seq, producer, added)])
    )


async def give_up(
    log: Log, *pending_entries: PendingEntry, attempts: int = 3, reason: str = "no use"
) -> None:
    await log.append(
        Transaction(dead_lettered=[DeadLettered(d.delivery_id, attempts, reason) for d in pending_entries])
    )


# Open messages


async def test_an_open_message_is_read_with_its_checkpoints_until_it_ends(log: Log) -> None:
    first, second, _ = await append(
        log, pending_entry(producer=WORKER), pending_entry(BOB, producer=WORKER), pending_entry()
    )
    await checkpoint(log, first, "a")
    await checkpoint(log, first, "b")
    await checkpoint(log, second, "c")
    assert await log.open_messages() == [
        StoredOpen(ALICE, first.stored, WORKER, [deltas("a"), deltas("b")]),
        StoredOpen(BOB, second.stored, WORKER, [deltas("c")]),
    ]
    assert (await page(log, 1, after=EMPTY)).entries[0].body == first.stored
    (ended,) = await append(log, end(first))
    assert await log.open_messages() == [StoredOpen(BOB, second.stored, WORKER, [deltas("c")])]
    assert await log.message("acme", first.message.id) == ended.message.SerializeToString()


async def test_open_messages_survive_a_restart(log: Log, opener: Opener) -> None:
    (one,) = await append(log, pending_entry(producer=WORKER))
    await checkpoint(log, one, "a", Producer("next", 2))
    await log.close()
    again = await opener()
    try:
        assert await again.open_messages() == [
            StoredOpen(ALICE, one.stored, Producer("next", 2), [deltas("a")])
        ]
    finally:
        await again.close()


async def test_an_edit_leaves_a_message_open(log: Log) -> None:
    (one,) = await append(log, pending_entry(producer=WORKER))
    await append(log, edit(one))
    assert [stored.producer for stored in await log.open_messages()] == [WORKER]


async def test_checkpoints_of_one_transaction_are_stored_in_order(log: Log) -> None:
    pending_entries = await append(log, *(pending_entry(producer=WORKER) for _ in range(70)))
    await log.append(
        Transaction(
            checkpoints=[
                Checkpoint(ALICE, d.position.seq, Producer("w", epoch), deltas(str(epoch)))
                for epoch in (2, 3, 4)
                for d in reversed(pending_entries)
            ]
        )
    )
    kept = [deltas("2"), deltas("3"), deltas("4")]
    assert await log.open_messages() == [
        StoredOpen(ALICE, d.stored, Producer("w", 4), kept) for d in pending_entries
    ]


async def test_a_checkpoint_may_change_the_producer_alone(log: Log) -> None:
    (one,) = await append(log, pending_entry(producer=WORKER))
    await checkpoint(log, one, producer=Producer("other", 2))
    assert await log.open_messages() == [StoredOpen(ALICE, one.stored, Producer("other", 2), [])]


@pytest.mark.parametrize("name", ["\0", "a\0b", "\x10", "\x100", "é\n"])
async def test_a_producer_may_have_any_name(log: Log, name: str) -> None:
    opened, taken_over = await append(
        log, pending_entry(producer=Producer(name, 1)), pending_entry(producer=WORKER)
    )
    await checkpoint(log, taken_over, producer=Producer(name, 2))
    await checkpoint(log, taken_over, "text", producer=Producer(name, 2))
    producers = [stored.producer for stored in await log.open_messages()]
    assert producers == [Producer(name, 1), Producer(name, 2)]
    await append(log, end(opened))


async def test_checkpoints_of_closed_messages_have_no_effect(log: Log) -> None:
    ended, whole, erased = await append(
        log, pending_entry(producer=WORKER), pending_entry(), pending_entry(BOB, producer=WORKER)
    )
    await append(log, end(ended))
    await log.reset(BOB)
    for one in (ended, whole, erased):
        await checkpoint(log, one, "late")
    assert await log.open_messages() == []
    # A checkpoint in the transaction of the end has no effect either.
    (last,) = await append(log, pending_entry(producer=WORKER))
    await log.append(
        Transaction([end(last)], checkpoints=[Checkpoint(ALICE, last.position.seq, WORKER, deltas("late"))])
    )
    assert await log.open_messages() == []


# Receipts


async def test_receipts_only_rise(log: Log) -> None:
    pending_entries = await append(log, *(pending_entry() for _ in range(5)))
    at = [EMPTY, *map(position, pending_entries)]

    async def receipt() -> StoredReceipt:
        (found,) = await log.receipts(ALICE, "", 9)
        return found

    await log.append(Transaction(delivered=[DeliveredPosition(ALICE, "alice", at[2])]))
    assert await receipt() == StoredReceipt("alice", 2, 0, NOW_MS)
    await append(log, read(ALICE, at[3]))
    assert await receipt() == StoredReceipt("alice", 3, 3, NOW_MS)
    await log.append(Transaction(delivered=[DeliveredPosition(ALICE, "alice", at[n]) for n in (1, 5, 4)]))
    assert await receipt() == StoredReceipt("alice", 5, 3, NOW_MS)
    await append(log, read(ALICE, at[4]), read(ALICE, at[2]))
    assert await receipt() == StoredReceipt("alice", 5, 4, NOW_MS)


async def test_receipts_are_listed_by_user(log: Log) -> None:
    (one,) = await append(log, pending_entry())
    users = ["Z", "a", "b", "é", "￿", "\U0001f600"]
    at = position(one)
    await log.append(Transaction(delivered=[DeliveredPosition(ALICE, user, at) for user in reversed(users)]))
    assert [found.user for found in await log.receipts(ALICE, "", 99)] == users
    assert [found.user for found in await log.receipts(ALICE, "a", 3)] == users[2:5]
    assert await log.receipts(BOB, "", 99) == []


async def test_receipts_of_an_erased_log_have_no_effect(log: Log) -> None:
    (one,) = await append(log, pending_entry())
    await log.append(Transaction(delivered=[DeliveredPosition(ALICE, "alice", position(one))]))
    await log.reset(ALICE)
    assert await log.receipts(ALICE, "", 9) == []
    stale = [DeliveredPosition(ALICE, "alice", position(one)), DeliveredPosition(ALICE, "alice", EMPTY)]
    await log.append(Transaction(delivered=stale))
    await append(log, pending_entry())
    await log.append(Transaction(delivered=stale))
    assert await log.receipts(ALICE, "", 9) == []


async def test_delivered_positions_are_read_for_many_users_at_once(log: Log) -> None:
    platform: TopicKey = ("acme", "echo", "web", 0, "")
    user: TopicKey = ("acme", "", "", USER, "alice")
    first, second, _, third = await append(
        log, pending_entry(), pending_entry(), pending_entry(BOB), pending_entry(user)
    )
    delivered = [
        DeliveredPosition(ALICE, "alice", position(second)),
        DeliveredPosition(user, "alice", position(third)),
    ]
    await log.append(Transaction([read(ALICE, position(first), "é")], delivered=delivered))
    asked = [
        (BOB, "alice"),
        (ALICE, "alice"),
        (platform, "alice"),
        (user, "alice"),
        (ALICE, "é"),
        (user, "é"),
    ]
    epochs = [one.epoch for one in await log.heads([BOB, ALICE, platform, user])]
    assert await log.delivered(asked) == [
        Position(epochs[0], 0),
        position(second),
        EMPTY,
        Position(epochs[3], 1),
        position(first),
        Position(epochs[3], 0),
    ]
    assert await log.delivered([]) == []
    many = await log.delivered([(ALICE, str(number)) for number in range(3000)])
    assert many == [Position(epochs[1], 0)] * 3000
    await log.reset(ALICE)
    assert await log.delivered([(ALICE, "alice")]) == [EMPTY]
    await append(log, pending_entry())
    (started,) = await log.delivered([(ALICE, "alice")])
    assert (started.seq, started.epoch == epochs[1]) == (0, False)


# Resetting


async def test_a_reset_counts_messages_and_erases_all_rows_of_the_log(log: Log) -> None:
    first, second, bob = await append(
        log,
        pending_entry(producer=WORKER),
        pending_entry(deliver=True),
        pending_entry(BOB, producer=WORKER, deliver=True),
    )
    await append(log, edit(second), read(ALICE, position(second)), read(BOB, position(bob)))
    await checkpoint(log, first, "a")
    await give_up(log, second, bob)
    assert await log.reset(ALICE) == 2
    assert [stored.topic for stored in await log.open_messages()] == [BOB]
    assert await log.receipts(ALICE, "", 9) == []
    assert len(await log.receipts(BOB, "", 9)) == 1
    assert [d.delivery_id for d in await log.dead_letters("acme", "echo", 0, 9)] == [bob.delivery_id]
    assert await log.backlogs("acme") == [Backlog("echo", 0, 0, 1)]
    assert await log.replay("acme", "echo", [second.delivery_id]) == []
    assert (await page(log)).entries == []
    # New rows at the same seqs are not mixed up with the erased ones, before or after sweeping.
    (new,) = await append(log, pending_entry(producer=WORKER))
    for _ in range(2):
        assert [stored for stored in await log.open_messages() if stored.topic == ALICE] == [
            StoredOpen(ALICE, new.stored, WORKER, [])
        ]
        assert [entry.body for entry in (await page(log)).entries] == [new.stored]
        await log.sweep(NOW_MS)


# Deliveries that fail


async def test_attempts_are_stored_with_the_delivery(log: Log, opener: Opener) -> None:
    first, second = await append(log, pending_entry(deliver=True), pending_entry(deliver=True))
    await log.append(Transaction(attempts=[Attempts(first.delivery_id, 1), Attempts(999_999, 4)]))
    await log.append(Transaction(attempts=[Attempts(first.delivery_id, 2), Attempts(first.delivery_id, 3)]))
    await log.close()
    again = await opener()
    try:
        assert await again.deliveries("acme", "echo", 0, 9) == [
            StoredDelivery(first.delivery_id, ALICE, first.stored, 3),
            StoredDelivery(second.delivery_id, ALICE, second.stored, 0),
        ]
    finally:
        await again.close()


async def test_a_dead_lettered_delivery_is_no_longer_a_delivery(log: Log) -> None:
    pending_entries = await append(log, *(pending_entry(deliver=True) for _ in range(4)))
    ids = [d.delivery_id for d in pending_entries]
    reason = 'odd: "\\\0é'
    await give_up(log, pending_entries[2], pending_entries[0], pending_entries[0], reason=reason)
    await log.append(
        Transaction(dead_lettered=[DeadLettered(ids[0], 9, "again"), DeadLettered(999_999, 9, "gone")])
    )
    await log.append(Transaction(settled=[ids[1]], dead_lettered=[DeadLettered(ids[1], 1, "was done")]))
    expected = [StoredDeadLetter(ids[n], pending_entries[n].stored, 3, reason, NOW_MS) for n in (0, 2)]
    assert await log.dead_letters("acme", "echo", 0, 9) == expected
    assert await log.dead_letters("acme", "echo", 0, 1) == expected[:1]
    assert await log.dead_letters("acme", "echo", ids[0], 9) == expected[1:]
    assert await log.dead_letters("acme", "echo", 2**64 - 1, 9) == []
    assert await log.dead_letters("acme", "other", 0, 9) == []
    assert await log.dead_letters("evil", "echo", 0, 9) == []
    assert [d.delivery_id for d in await log.deliveries("acme", "echo", 0, 9)] == [ids[3]]


async def test_replayed_dead_letters_are_new_deliveries_in_their_order(log: Log) -> None:
    pending_entries = await append(log, *(pending_entry(deliver=True) for _ in range(4)))
    ids = [d.delivery_id for d in pending_entries]
    await give_up(log, *pending_entries[:3])
    assert await log.replay("acme", "other", ids) == []
    assert await log.replay("evil", "echo", ids) == []
    replayed = await log.replay("acme", "echo", [ids[2], ids[0], ids[0], ids[3], 999_999, 2**64 - 1])
    assert [(d.message, d.attempts, d.topic) for d in replayed] == [
        (pending_entries[0].stored, 0, ALICE),
        (pending_entries[2].stored, 0, ALICE),
    ]
    new = [d.delivery_id for d in replayed]
    assert new == sorted(new)
    assert new[0] > ids[3]
    assert [d.delivery_id for d in await log.deliveries("acme", "echo", 0, 9)] == [ids[3], *new]
    assert [d.delivery_id for d in await log.dead_letters("acme", "echo", 0, 9)] == [ids[1]]
    (later,) = await append(log, pending_entry(deliver=True))
    assert later.delivery_id > new[1]
    assert await log.replay("acme", "echo", []) == []


async def test_withdrawn_deliveries_are_deleted_and_reported_if_found(log: Log) -> None:
    first, second, bob = await append(
        log, pending_entry(deliver=True), pending_entry(deliver=True), pending_entry(BOB, deliver=True)
    )
    asked = [
        Withdrawal(ALICE, first.position.seq),
        Withdrawal(ALICE, first.position.seq),
        Withdrawal(ALICE, 99),
        Withdrawal(BOB, second.position.seq),
        Withdrawal(OTHER_TENANT, 1),
        Withdrawal(BOB, bob.position.seq),
    ]
    await log.append(Transaction(settled=[bob.delivery_id], withdrawn=asked))
    assert [one.found for one in asked] == [True, True, False, False, False, False]
    assert [d.delivery_id for d in await log.deliveries("acme", "echo", 0, 9)] == [second.delivery_id]


async def test_withdrawals_beside_a_repeat_are_reported(log: Log) -> None:
    key = a_key()
    (first,) = await append(log, pending_entry(key=key, deliver=True))
    withdrawal = Withdrawal(ALICE, first.position.seq)
    await log.append(Transaction([pending_entry(key=key)], withdrawn=[withdrawal]))
    assert withdrawal.found


async def test_backlogs_count_dead_letters(log: Log) -> None:
    other: TopicKey = ("acme", "other", *ALICE[2:])
    pending_entries = await append(
        log, pending_entry(deliver=True), pending_entry(deliver=True), pending_entry(other, deliver=True)
    )
    await give_up(log, pending_entries[0], pending_entries[2])
    assert sorted(await log.backlogs("acme")) == [
        Backlog("echo", 1, NOW_MS, 1),
        Backlog("other", 0, 0, 1),
    ]
    assert await log.backlogs("evil") == []
