"""Guarantees of every log engine: appends, keys, pages, resets and deliveries."""

from __future__ import annotations

from typing import Any

import pytest
from trunkline.v1.message_pb2 import Message
from trunkline_router.core.values.log_records import (
    AppendResult,
    Attempts,
    DeadLettered,
    EntryKind,
    PageRequest,
    Transaction,
)
from trunkline_router.core.values.stored_records import Backlog, ExpiredDelivery
from trunkline_router.core.values.topics import EMPTY, GROUP, NO_TARGET, PERSON, USER, Position, TopicKey
from trunkline_router.log.interface import Log, LogUnavailable

from tests.router.log.engines import (
    ALICE,
    BOB,
    HOUR_MS,
    NOW_MS,
    OTHER_TENANT,
    Opener,
    a_key,
    append,
    pending_entry,
    stored_size,
)


async def fill(log: Log, count: int, topic: TopicKey = ALICE) -> str:
    """Append messages with the texts "1", "2", …. Returns the epoch."""
    pending_entries = await append(log, *(pending_entry(topic, str(n)) for n in range(1, count + 1)))
    return pending_entries[0].message.position.epoch


async def page(log: Log, limit: int = 100, **where: Any) -> tuple[list[int], bool, bool]:
    """Read a page of ALICE's log. Returns its seqs, whether there are more, and its validity."""
    found = (await log.read([PageRequest(ALICE, limit, **where)]))[0]
    return [entry.seq for entry in found.entries], found.more, found.valid


# Appending


async def test_messages_of_a_topic_get_consecutive_seqs_from_one_in_one_epoch(log: Log) -> None:
    pending_entries = await append(log, pending_entry(), pending_entry(BOB), pending_entry())
    pending_entries += await append(log, pending_entry())
    positions = [d.message.position for d in pending_entries if d.topic == ALICE]
    assert [position.seq for position in positions] == [1, 2, 3]
    assert len({position.epoch for position in positions}) == 1
    assert pending_entries[1].message.position.seq == 1
    assert pending_entries[1].message.position.epoch not in ("", positions[0].epoch)


async def test_a_committed_entry_is_completed(log: Log) -> None:
    (one,) = await append(log, pending_entry(connections=3))
    assert one.result is AppendResult.COMMITTED
    assert one.message.created_at.ToMilliseconds() == NOW_MS
    assert Message.FromString(one.stored) == one.message
    assert one.delivery_id == 0
    assert one.connections == 3


async def test_message_ids_are_unique(log: Log) -> None:
    pending_entries = await append(
        log, *(pending_entry(topic) for topic in (ALICE, BOB, OTHER_TENANT) for _ in range(20))
    )
    assert len({d.message.id for d in pending_entries}) == 60


async def test_every_kind_of_topic_has_its_own_log(log: Log) -> None:
    topics: list[TopicKey] = [
        ("acme", "", "", NO_TARGET, ""),
        ("acme", "echo", "", NO_TARGET, ""),
        ("acme", "echo", "web", NO_TARGET, ""),
        ("acme", "echo", "web", PERSON, "x"),
        ("acme", "echo", "web", GROUP, "x"),
        ("acme", "", "", USER, "x"),
    ]
    pending_entries = await append(log, *(pending_entry(topic) for topic in topics))
    assert [d.message.position.seq for d in pending_entries] == [1] * 6
    pages = await log.read([PageRequest(topic, 10) for topic in topics])
    assert [p.entries for p in pages] == [[(1, EntryKind.MESSAGE, d.stored)] for d in pending_entries]


@pytest.mark.parametrize("count", [1, 2, 3, 255, 256, 257, 1025])
async def test_transactions_of_any_size_are_written_whole_and_in_order(log: Log, count: int) -> None:
    pending_entries = await append(
        log, *(pending_entry(text=str(n), key=a_key(), deliver=True) for n in range(count))
    )
    (found,) = await log.read([PageRequest(ALICE, count + 1, after=EMPTY)])
    assert found.entries == [(n, EntryKind.MESSAGE, d.stored) for n, d in enumerate(pending_entries, 1)]
    stored = await log.deliveries("acme", "echo", 0, count + 1)
    assert [d.delivery_id for d in stored] == [d.delivery_id for d in pending_entries]


async def test_an_empty_transaction_is_accepted(log: Log) -> None:
    await log.append(Transaction())


# Heads


async def test_an_empty_log_has_an_empty_head(log: Log) -> None:
    assert await log.heads([ALICE, BOB]) == [EMPTY, EMPTY]


async def test_heads_follow_appends(log: Log) -> None:
    await log.heads([ALICE])
    epoch = await fill(log, 3)
    assert await log.heads([BOB, ALICE, ALICE]) == [EMPTY, Position(epoch, 3), Position(epoch, 3)]
    assert log.head(ALICE) in (None, Position(epoch, 3))


async def test_heads_and_messages_survive_a_restart(log: Log, opener: Opener) -> None:
    epoch = await fill(log, 3)
    await log.close()
    again = await opener()
    try:
        assert await again.heads([ALICE]) == [Position(epoch, 3)]
        (fourth,) = await append(again, pending_entry())
        assert fourth.message.position == Position(epoch, 4).to_proto()
    finally:
        await again.close()


# Idempotency


async def test_a_repeated_key_gets_the_first_result(log: Log) -> None:
    key = a_key()
    (first,) = await append(log, pending_entry(key=key, digest=b"same", connections=7, deliver=True))
    (again,) = await append(log, pending_entry(key=key, digest=b"same", connections=0, deliver=True))
    assert again.result is AppendResult.DUPLICATE
    assert again.message.id == first.message.id
    assert again.message.position == first.message.position
    assert again.connections == 7
    assert (again.delivery_id, again.stored) == (0, b"")
    assert await page(log) == ([1], False, True)
    assert len(await log.deliveries("acme", "echo", 0, 10)) == 1


async def test_a_repeated_key_with_other_content_is_refused(log: Log) -> None:
    key = a_key()
    await append(log, pending_entry(key=key, digest=b"one"))
    (other,) = await append(log, pending_entry(key=key, digest=b"two"))
    assert other.result is AppendResult.MISMATCH
    assert other.message.id == ""
    assert not other.message.HasField("position")
    assert await page(log) == ([1], False, True)


async def test_duplicates_among_new_entries_leave_no_gap(log: Log) -> None:
    key = a_key()
    (first,) = await append(log, pending_entry(key=key))
    pending_entries = await append(
        log,
        pending_entry(),
        pending_entry(BOB, key=key),
        pending_entry(key=a_key()),
        pending_entry(key=key, digest=b"x"),
    )
    assert [d.result.name for d in pending_entries] == ["COMMITTED", "DUPLICATE", "COMMITTED", "MISMATCH"]
    assert [d.message.position.seq for d in pending_entries[::2]] == [2, 3]
    assert pending_entries[1].message.id == first.message.id
    assert await log.heads([BOB]) == [EMPTY]


async def test_repeats_within_a_transaction_get_the_result_of_the_first(log: Log) -> None:
    key = a_key()
    first, same, other = await append(
        log,
        pending_entry(key=key, digest=b"same", connections=2),
        pending_entry(key=key, digest=b"same"),
        pending_entry(key=key, digest=b"other"),
    )
    assert [d.result.name for d in (first, same, other)] == ["COMMITTED", "DUPLICATE", "MISMATCH"]
    assert (same.message.id, same.connections) == (first.message.id, 2)
    assert await page(log) == ([1], False, True)


async def test_repeats_within_a_transaction_are_compared_with_the_stored_result(log: Log) -> None:
    key = a_key()
    (first,) = await append(log, pending_entry(key=key, digest=b"first"))
    other, same = await append(
        log, pending_entry(key=key, digest=b"other"), pending_entry(key=key, digest=b"first")
    )
    assert (other.result, same.result) == (AppendResult.MISMATCH, AppendResult.DUPLICATE)
    assert same.message.id == first.message.id


async def test_a_repeat_only_entry_is_never_written(log: Log) -> None:
    key = a_key()
    (new,) = await append(log, pending_entry(key=key, repeat_only=True))
    assert new.result is AppendResult.NO_REPEAT
    assert await page(log) == ([], False, True)
    first, repeat = await append(
        log, pending_entry(key=key, connections=3), pending_entry(key=key, connections=0, repeat_only=True)
    )
    assert [first.result, repeat.result] == [AppendResult.COMMITTED, AppendResult.DUPLICATE]
    assert (repeat.message.id, repeat.connections) == (first.message.id, 3)
    (other,) = await append(log, pending_entry(key=key, digest=b"other", repeat_only=True))
    assert other.result is AppendResult.MISMATCH
    assert await page(log) == ([1], False, True)


async def test_a_repeat_only_entry_without_a_digest_matches_any_content(log: Log) -> None:
    key = a_key()
    (first,) = await append(log, pending_entry(key=key, digest=b"content"))
    asked, sent = await append(log, pending_entry(key=key, repeat_only=True), pending_entry(key=key))
    assert (asked.result, asked.message.id) == (AppendResult.DUPLICATE, first.message.id)
    assert sent.result is AppendResult.MISMATCH


async def test_a_transaction_of_duplicates_still_settles_deliveries(log: Log) -> None:
    key = a_key()
    (first,) = await append(log, pending_entry(key=key, deliver=True))
    await append(log, pending_entry(key=key, deliver=True), settled=(first.delivery_id,))
    assert await log.deliveries("acme", "echo", 0, 10) == []


async def test_keys_survive_a_restart(log: Log, opener: Opener) -> None:
    key = a_key()
    await append(log, pending_entry(key=key))
    await log.close()
    again = await opener()
    try:
        (repeat,) = await append(again, pending_entry(key=key))
        assert repeat.result is AppendResult.DUPLICATE
    finally:
        await again.close()


async def test_sweeping_deletes_only_expired_keys(log: Log) -> None:
    key = a_key()
    await append(log, pending_entry(key=key))
    await log.sweep(NOW_MS + HOUR_MS)
    (kept,) = await append(log, pending_entry(key=key))
    assert kept.result is AppendResult.DUPLICATE
    for _ in range(3):
        await log.sweep(NOW_MS + HOUR_MS + 1)
    (forgotten,) = await append(log, pending_entry(key=key))
    assert forgotten.result is AppendResult.COMMITTED


# Reading


async def test_pages_read_forward_from_a_position(log: Log) -> None:
    epoch = await fill(log, 5)
    assert await page(log, 2, after=EMPTY) == ([1, 2], True, True)
    assert await page(log, 2, after=Position(epoch, 2)) == ([3, 4], True, True)
    assert await page(log, 2, after=Position(epoch, 3)) == ([4, 5], False, True)
    assert await page(log, 2, after=Position(epoch, 5)) == ([], False, True)


async def test_pages_read_backward_from_a_position(log: Log) -> None:
    epoch = await fill(log, 5)
    assert await page(log, 2) == ([4, 5], True, True)
    assert await page(log, 2, before=Position(epoch, 4)) == ([2, 3], True, True)
    assert await page(log, 2, before=Position(epoch, 2)) == ([1], False, True)
    assert await page(log, 2, before=Position(epoch, 1)) == ([], False, True)


@pytest.mark.parametrize("side", ["after", "before"])
async def test_positions_of_another_log_are_not_valid(log: Log, side: str) -> None:
    epoch = await fill(log, 2)
    for position in (Position(epoch, 3), Position("0" * 13, 1), Position("", 1), Position(epoch, -1)):
        where: dict[str, Any] = {side: position}
        assert await page(log, **where) == ([], False, False)


async def test_an_empty_log_has_empty_pages(log: Log) -> None:
    assert await page(log) == ([], False, True)
    assert await page(log, after=EMPTY) == ([], False, True)
    assert await page(log, after=Position("0" * 13, 1)) == ([], False, False)


async def test_a_page_stays_within_its_bytes_but_has_at_least_one_message(log: Log) -> None:
    epoch = await fill(log, 4)
    size = stored_size(log, (await log.read([PageRequest(ALICE, 1)]))[0].entries[0].body)
    assert await page(log, after=EMPTY, max_bytes=2 * size) == ([1, 2], True, True)
    assert await page(log, max_bytes=2 * size) == ([3, 4], True, True)
    assert await page(log, before=Position(epoch, 4), max_bytes=1) == ([3], True, True)
    assert await page(log, after=Position(epoch, 3), max_bytes=0) == ([4], False, True)


async def test_a_batch_of_page_requests_is_answered_in_order(log: Log) -> None:
    alice = await fill(log, 3)
    bob = await fill(log, 2, BOB)
    requests = [
        PageRequest(BOB, 1, after=Position(bob, 1)),
        PageRequest(ALICE, 1, after=Position(bob, 1)),
        PageRequest(OTHER_TENANT, 5),
        PageRequest(ALICE, 2, after=EMPTY),
        PageRequest(BOB, 5),
    ]
    pages = await log.read(requests)
    assert [[entry.seq for entry in p.entries] for p in pages] == [[2], [], [], [1, 2], [1, 2]]
    assert [p.valid for p in pages] == [True, False, True, True, True]
    assert [p.head for p in pages] == [
        Position(bob, 2),
        Position(alice, 3),
        EMPTY,
        Position(alice, 3),
        Position(bob, 2),
    ]
    assert await log.read([]) == []


async def test_a_message_is_found_by_its_id_only_within_its_tenant(log: Log) -> None:
    (one,) = await append(log, pending_entry())
    assert await log.message("acme", one.message.id) == one.stored
    assert await log.message("evil", one.message.id) is None


@pytest.mark.parametrize(
    "strange", ["", "-", "x-1", "é" * 13 + "-1", "\0", "0" * 13 + "-" + "9" * 400, "\ud800"]
)
async def test_any_string_is_accepted_as_a_message_id(log: Log, strange: str) -> None:
    await append(log, pending_entry())
    assert await log.message("acme", strange) is None


async def test_malformed_message_ids_find_nothing(log: Log) -> None:
    (one,) = await append(log, pending_entry())
    epoch = one.message.position.epoch
    for seq in ("0", "01", "2", "-1", "1 ", "1\n", "+1", "١", str(2**62), str(2**64 + 1)):
        assert await log.message("acme", f"{epoch}-{seq}") is None


# Resetting


async def test_a_reset_log_is_empty_and_starts_a_new_epoch(log: Log) -> None:
    epoch = await fill(log, 3)
    await append(log, pending_entry(BOB))
    assert await log.reset(ALICE) == 3
    assert await log.heads([ALICE]) == [EMPTY]
    assert await log.message("acme", f"{epoch}-1") is None
    assert await page(log, after=Position(epoch, 1)) == ([], False, False)
    (first,) = await append(log, pending_entry())
    assert first.message.position.seq == 1
    assert first.message.position.epoch != epoch
    assert await log.reset(BOB) == 1


async def test_resetting_an_empty_log_erases_nothing(log: Log) -> None:
    assert await log.reset(ALICE) == 0


async def test_a_long_log_is_invisible_as_soon_as_it_is_reset(log: Log) -> None:
    for _ in range(5):
        await fill(log, 1000)
    assert await log.reset(ALICE) == 5000
    assert await page(log) == ([], False, True)
    await append(log, pending_entry())
    for _ in range(4):
        await log.sweep(NOW_MS)
    assert await page(log) == ([1], False, True)


async def test_a_reset_deletes_only_the_topics_deliveries(log: Log) -> None:
    _, bobs = await append(log, pending_entry(deliver=True), pending_entry(BOB, deliver=True))
    await log.reset(ALICE)
    assert [d.delivery_id for d in await log.deliveries("acme", "echo", 0, 10)] == [bobs.delivery_id]


async def test_a_repeat_of_a_reset_message_gets_its_first_result(log: Log) -> None:
    key = a_key()
    (first,) = await append(log, pending_entry(key=key))
    await log.reset(ALICE)
    (again,) = await append(log, pending_entry(key=key))
    assert again.result is AppendResult.DUPLICATE
    assert again.message.id == first.message.id


# Deliveries


async def test_deliveries_are_listed_in_order_until_they_are_settled(log: Log) -> None:
    pending_entries = await append(log, *(pending_entry(text=str(n), deliver=n != 1) for n in range(4)))
    ids = [d.delivery_id for d in pending_entries]
    assert ids[1] == 0
    stored = await log.deliveries("acme", "echo", 0, 2)
    assert stored == [
        (ids[0], ALICE, pending_entries[0].stored, 0, 0),
        (ids[2], ALICE, pending_entries[2].stored, 0, 0),
    ]
    assert [d.delivery_id for d in await log.deliveries("acme", "echo", ids[2], 9)] == [ids[3]]
    await append(log, settled=(ids[0], ids[3], 999_999))
    assert [d.delivery_id for d in await log.deliveries("acme", "echo", 0, 9)] == [ids[2]]


async def test_deliveries_are_listed_by_tenant_and_agent(log: Log) -> None:
    await append(log, pending_entry(deliver=True))
    assert await log.deliveries("evil", "echo", 0, 9) == []
    assert await log.deliveries("acme", "other", 0, 9) == []
    assert await log.backlogs("evil") == []


async def test_delivery_ids_rise_forever(log: Log, opener: Opener) -> None:
    pending_entries = await append(log, pending_entry(deliver=True), pending_entry(deliver=True))
    highest = max(d.delivery_id for d in pending_entries)
    await append(log, settled=tuple(d.delivery_id for d in pending_entries))
    await log.close()
    again = await opener()
    try:
        (later,) = await append(again, pending_entry(deliver=True))
        assert later.delivery_id > highest
    finally:
        await again.close()


async def test_backlogs_count_unsettled_deliveries_of_each_agent(log: Log) -> None:
    quiet: TopicKey = ("acme", "quiet", "web", PERSON, "alice")
    other: TopicKey = ("acme", "other", "web", PERSON, "alice")
    pending_entries = await append(
        log,
        pending_entry(deliver=True),
        pending_entry(BOB, deliver=True),
        pending_entry(other, deliver=True),
        pending_entry(quiet, deliver=True),
    )
    await append(log, settled=(pending_entries[3].delivery_id,))
    assert sorted(await log.backlogs("acme")) == [Backlog("echo", 2, NOW_MS), Backlog("other", 1, NOW_MS)]


async def test_a_delivery_expires_at_its_time_unless_there_were_attempts(log: Log) -> None:
    never, later, tried, past = await append(
        log,
        *(pending_entry(deliver=True, expire_after_ms=after_ms) for after_ms in (0, 1, -1, -1)),
    )
    assert [one.expires_ms for one in (never, later, past)] == [0, NOW_MS + 1, NOW_MS - 1]
    await log.append(Transaction(attempts=[Attempts(tried.delivery_id, 1)]))
    expired = [ExpiredDelivery(past.delivery_id, "acme", "echo")]
    assert await log.expired(0, 9) == (expired, 0)
    assert await log.count_waiting("acme", "echo") == 3
    assert await log.backlogs("acme") == [Backlog("echo", 3, NOW_MS)]
    # An expired delivery stays until it is settled.
    assert [each.expires_ms for each in await log.deliveries("acme", "echo", 0, 9)] == [
        0,
        NOW_MS + 1,
        NOW_MS - 1,
        NOW_MS - 1,
    ]
    await append(log, settled=(past.delivery_id,))
    assert await log.expired(0, 9) == ([], 0)


async def test_expired_deliveries_are_found_piece_by_piece(log: Log) -> None:
    written = await append(
        log, *(pending_entry(deliver=True, expire_after_ms=-(n % 2) or 5) for n in range(5))
    )
    ids = [one.delivery_id for one in written]
    first, second, third = [await log.expired(after, 2) for after in (0, ids[1], ids[3])]
    assert [one.delivery_id for one in first.expired] == [ids[1]]
    assert [one.delivery_id for one in second.expired] == [ids[3]]
    assert (first.after, second.after, third) == (ids[1], ids[3], ([], 0))


async def test_a_replayed_dead_letter_does_not_expire(log: Log) -> None:
    (one,) = await append(log, pending_entry(deliver=True, expire_after_ms=-1))
    await log.append(Transaction(dead_lettered=[DeadLettered(one.delivery_id, 1, "no use")]))
    (again,) = await log.replay("acme", "echo", [one.delivery_id])
    assert (again.attempts, again.expires_ms) == (0, 0)
    assert await log.expired(0, 9) == ([], 0)
    assert await log.count_waiting("acme", "echo") == 1


# Closing


async def test_a_closed_log_is_unavailable(log: Log) -> None:
    await log.close()
    await log.close()
    for call in (
        append(log, pending_entry()),
        log.heads([ALICE]),
        log.read([]),
        log.message("acme", "x"),
        log.open_messages(),
        log.dead_letters("acme", "echo", 0, 1),
        log.replay("acme", "echo", [1]),
        log.receipts(ALICE, "", 1),
        log.delivered([(ALICE, "alice")]),
        log.reset(ALICE),
        log.deliveries("acme", "echo", 0, 1),
        log.backlogs("acme"),
        log.count_waiting("acme", "echo"),
        log.expired(0, 1),
        log.sweep(NOW_MS),
    ):
        with pytest.raises(LogUnavailable):
            await call
    with pytest.raises(LogUnavailable):
        log.head(ALICE)
