"""Guarantees of every log engine: pruning."""

from __future__ import annotations

from typing import Any

import pytest
from trunkline.v1.message_pb2 import Change
from trunkline_router.core.values.log_records import (
    AppendResult,
    DeadLettered,
    DeliveredPosition,
    EntryKind,
    HistoryLimits,
    PageRequest,
    PendingEntry,
    Producer,
    Transaction,
    Withdrawal,
)
from trunkline_router.core.values.topics import EMPTY, PERSON, Position, TopicKey
from trunkline_router.log.interface import Log

from tests.router.log.engines import (
    ALICE,
    BOB,
    NOW_MS,
    OTHER_TENANT,
    Opener,
    append,
    clock,
    edit,
    end,
    pending_entry,
    position,
    read,
    recall,
    stored_size,
)
from tests.router.log.whole_erasures import prune

WORKER = Producer("worker", 1)


async def fill(log: Any, count: int, topic: TopicKey = ALICE, **more: Any) -> list[PendingEntry]:
    return await append(log, *(pending_entry(topic, str(n), **more) for n in range(1, count + 1)))


async def page(log: Any, limit: int = 100, topic: TopicKey = ALICE, **where: Any) -> tuple[list[int], bool]:
    """Read a page. Returns its seqs, and whether there are more."""
    (found,) = await log.read([PageRequest(topic, limit, **where)])
    assert found.valid
    return [entry.seq for entry in found.entries], found.more


async def left(log: Any, topic: TopicKey = ALICE) -> list[int]:
    seqs, more = await page(log, 10_000, topic, after=EMPTY)
    assert not more
    return seqs


async def test_a_count_limit_keeps_the_newest_entries(any_log: Any) -> None:
    first, *_ = await fill(any_log, 5)
    await append(any_log, edit(first), read(ALICE, position(first)))
    await fill(any_log, 2, BOB)
    await fill(any_log, 5, OTHER_TENANT)
    assert await prune(any_log, max_messages=3) == 4
    assert (await left(any_log), await left(any_log, BOB)) == ([5, 6, 7], [1, 2])
    assert await left(any_log, OTHER_TENANT) == [1, 2, 3, 4, 5]
    assert await prune(any_log, max_messages=3) == 0
    assert await prune(any_log, max_messages=2) == 1
    assert await left(any_log) == [6, 7]


async def test_nothing_is_pruned_without_limits_or_within_them(any_log: Any) -> None:
    await fill(any_log, 5)
    assert await prune(any_log) == 0
    assert await prune(any_log, max_messages=5, max_bytes=1 << 30, max_age_ms=NOW_MS + 1) == 0
    assert await prune(any_log, "nobody", max_messages=1) == 0
    assert await left(any_log) == [1, 2, 3, 4, 5]


async def test_an_age_limit_prunes_older_entries(log: Log) -> None:
    first, *_ = await fill(log, 2)
    clock.now_ms += 1000
    await append(log, edit(first), pending_entry())
    clock.now_ms += 1000
    await fill(log, 1)
    assert await prune(log, max_age_ms=1000, now_ms=NOW_MS + 1000) == 0
    assert await prune(log, max_age_ms=1000, now_ms=NOW_MS + 1001) == 2
    assert await left(log) == [3, 4, 5]
    assert await prune(log, max_age_ms=500, now_ms=NOW_MS + 2000) == 1
    assert await left(log) == [5]
    assert await prune(log, max_age_ms=1, now_ms=NOW_MS + 2002) == 1
    assert await left(log) == []


async def test_an_old_entry_after_a_newer_one_is_not_pruned_before_it(log: Log) -> None:
    await fill(log, 2)
    clock.now_ms += 1000
    await fill(log, 1)
    clock.now_ms -= 1000
    await fill(log, 1)
    assert await prune(log, max_age_ms=500, now_ms=NOW_MS + 600) == 2
    assert await left(log) == [3, 4]


async def test_a_size_limit_keeps_the_newest_entries_and_always_the_last(any_log: Any) -> None:
    pending_entries = await fill(any_log, 9)
    (small,) = await append(any_log, read(ALICE, position(pending_entries[-1])))
    assert len({len(each.stored) for each in pending_entries}) == 1
    size = stored_size(any_log, *(each.stored for each in pending_entries[:3]), small.stored)
    assert await prune(any_log, max_bytes=size) == 6
    assert await left(any_log) == [7, 8, 9, 10]
    assert await prune(any_log, max_bytes=size - 1) == 1
    assert await prune(any_log, max_bytes=1) == 2
    assert await left(any_log) == [10]
    assert await prune(any_log, max_bytes=1) == 0


async def test_the_strictest_limit_applies(log: Log) -> None:
    pending_entries = await fill(log, 9)
    size = stored_size(log, *(each.stored for each in pending_entries[:7]))
    assert await prune(log, max_messages=8, max_bytes=size, max_age_ms=1) == 2
    assert await prune(log, max_messages=6, max_bytes=size, max_age_ms=1) == 1
    assert await prune(log, max_messages=6, max_age_ms=1, now_ms=NOW_MS + 2) == 6
    assert await left(log) == []


async def test_an_open_message_and_all_after_it_stay(any_log: Any) -> None:
    await fill(any_log, 2)
    (opened,) = await fill(any_log, 1, producer=WORKER)
    await fill(any_log, 2)
    for limits in ({"max_messages": 1}, {"max_bytes": 1}, {"max_age_ms": 1, "now_ms": NOW_MS + 2}):
        await prune(any_log, **limits)  # type: ignore[arg-type]
        assert await left(any_log) == [3, 4, 5]
    assert len(await any_log.open_messages()) == 1
    await append(any_log, end(opened))
    assert await prune(any_log, max_messages=1) == 3
    assert await left(any_log) == [6]


@pytest.mark.parametrize("count", [3, 0])
async def test_seqs_continue_after_everything_was_pruned(log: Log, opener: Opener, count: int) -> None:
    epoch = position((await fill(log, 6))[0]).epoch
    limits = {"max_messages": count} if count else {"max_age_ms": 1, "now_ms": NOW_MS + 2}
    assert await prune(log, **limits) == 6 - count
    assert await log.heads([ALICE]) == [Position(epoch, 6)]
    await log.close()
    again = await opener()
    try:
        assert await again.heads([ALICE]) == [Position(epoch, 6)]
        (next_one,) = await append(again, pending_entry())
        assert position(next_one) == Position(epoch, 7)
        assert await left(again) == [*range(7 - count, 7), 7]
        assert await again.reset(ALICE) == count + 1
        (first,) = await append(again, pending_entry())
        assert first.position.seq == 1
        assert await left(again) == [1]
    finally:
        await again.close()


async def test_pages_begin_with_the_first_entry_left(any_log: Any) -> None:
    pending_entries = await fill(any_log, 8)
    await prune(any_log, max_messages=4)
    at = [EMPTY, *map(position, pending_entries)]
    for messages_only in (False, True):

        async def seqs(limit: int, only: bool = messages_only, **where: Any) -> tuple[list[int], bool]:
            return await page(any_log, limit, messages_only=only, **where)

        assert await seqs(2, after=EMPTY) == ([5, 6], True)
        assert await seqs(2, after=at[1]) == ([5, 6], True)
        assert await seqs(4, after=at[4]) == ([5, 6, 7, 8], False)
        assert await seqs(2, after=at[6]) == ([7, 8], False)
        assert await seqs(3) == ([6, 7, 8], True)
        assert await seqs(4) == ([5, 6, 7, 8], False)
        assert await seqs(9) == ([5, 6, 7, 8], False)
        assert await seqs(2, before=at[7]) == ([5, 6], False)
        assert await seqs(2, before=at[8]) == ([6, 7], True)
        assert await seqs(9, before=at[5]) == ([], False)
        assert await seqs(9, before=at[3]) == ([], False)
        assert await seqs(9, before=EMPTY) == ([], False)


async def test_pages_of_a_fully_pruned_log_are_empty(log: Log) -> None:
    (first, _) = await fill(log, 2)
    await prune(log, max_age_ms=1, now_ms=NOW_MS + 2)
    for where in ({}, {"after": EMPTY}, {"after": position(first)}, {"before": position(first)}):
        for only in (False, True):
            assert await page(log, messages_only=only, **where) == ([], False)


async def test_a_pruned_message_is_not_found_and_cannot_change(any_log: Any) -> None:
    first, second, third = await fill(any_log, 3)
    await prune(any_log, max_messages=1)
    assert await any_log.message("acme", first.message.id) is None
    assert await any_log.message("acme", third.message.id) == third.stored
    changes = await append(any_log, edit(first), recall(second), read(ALICE, position(first)))
    assert [(each.result, each.position.seq) for each in changes] == [
        (AppendResult.COMMITTED, 4),
        (AppendResult.COMMITTED, 5),
        (AppendResult.COMMITTED, 6),
    ]
    assert await any_log.message("acme", first.message.id) is None
    assert await left(any_log) == [3, 4, 5, 6]


async def test_changes_of_a_pruned_message_are_read_without_it(any_log: Any) -> None:
    first, second = await fill(any_log, 2, producer=WORKER)
    changes = await append(any_log, end(first), edit(second), end(second))
    await fill(any_log, 1)
    assert await prune(any_log, max_messages=5) == 1
    for where in ({"after": EMPTY}, {"after": position(second)}, {}):
        (found,) = await any_log.read([PageRequest(ALICE, 9, **where)])
        changes_read = {e.seq: Change.FromString(e.body) for e in found.entries if e.kind is EntryKind.CHANGE}
        assert list(changes_read) == [3, 4, 5]
        assert changes_read[3] == changes[0].change
        assert changes_read[4].HasField("message")
    await prune(any_log, max_messages=3)
    (found,) = await any_log.read([PageRequest(ALICE, 9, after=EMPTY)])
    assert [(e.seq, e.body) for e in found.entries[:2]] == [(4, changes[1].stored), (5, changes[2].stored)]


async def test_deliveries_of_pruned_messages_are_deleted(any_log: Any) -> None:
    pending_entries = await fill(any_log, 6, deliver=True)
    (bob,) = await fill(any_log, 1, BOB, deliver=True)
    ids = [each.delivery_id for each in pending_entries]
    await any_log.append(
        Transaction(dead_lettered=[DeadLettered(ids[0], 1, "no"), DeadLettered(ids[5], 1, "no")])
    )
    await prune(any_log, max_messages=3)
    found = await any_log.deliveries("acme", "echo", 0, 3)
    assert [each.delivery_id for each in found] == [*ids[3:5], bob.delivery_id]
    assert [each.delivery_id for each in await any_log.dead_letters("acme", "echo", 0, 9)] == [ids[5]]
    # Changes of the pruned message have no effect.
    withdrawal = Withdrawal(ALICE, 2)
    await any_log.append(
        Transaction(settled=[ids[1]], dead_lettered=[DeadLettered(ids[2], 1, "late")], withdrawn=[withdrawal])
    )
    assert not withdrawal.found
    assert len(await any_log.dead_letters("acme", "echo", 0, 9)) == 1
    assert await any_log.replay("acme", "echo", [ids[0]]) == []


async def test_receipts_and_keys_survive_pruning(any_log: Any) -> None:
    key = b"k" * 16
    (first,) = await append(any_log, pending_entry(key=key))
    await fill(any_log, 3)
    await any_log.append(Transaction(delivered=[DeliveredPosition(ALICE, "alice", position(first))]))
    await prune(any_log, max_messages=1)
    assert [(each.user, each.delivered) for each in await any_log.receipts(ALICE, "", 9)] == [("alice", 1)]
    (again,) = await append(any_log, pending_entry(key=key))
    assert (again.result, again.message.id) == (AppendResult.DUPLICATE, first.message.id)


async def test_many_logs_are_pruned_in_pieces_with_appends_in_between(any_log: Any) -> None:
    topics: list[TopicKey] = [("acme", "echo", "web", PERSON, str(n)) for n in range(600)]
    await append(any_log, *(pending_entry(topic) for topic in topics for _ in range(3)))
    cursor = None
    pieces = erased = 0
    while pieces == 0 or cursor is not None:
        piece = await any_log.prune("acme", HistoryLimits(max_messages=1), cursor, NOW_MS)
        cursor, pieces, erased = piece.cursor, pieces + 1, erased + piece.messages
        await append(any_log, pending_entry(BOB))
    assert pieces > 3
    assert erased >= 1200
    for topic in topics:
        assert await left(any_log, topic) == [3]


async def test_a_cursor_of_an_erased_log_continues_with_the_others(any_log: Any) -> None:
    topics: list[TopicKey] = [("acme", "echo", "web", PERSON, str(n)) for n in range(600)]
    await append(any_log, *(pending_entry(topic) for topic in topics for _ in range(2)))
    piece = await any_log.prune("acme", HistoryLimits(max_messages=1), None, NOW_MS)
    for topic in topics:
        if await left(any_log, topic) == [2]:
            await any_log.reset(topic)
    while piece.cursor is not None:
        piece = await any_log.prune("acme", HistoryLimits(max_messages=1), piece.cursor, NOW_MS)
    for topic in topics:
        assert await left(any_log, topic) in ([], [2])
