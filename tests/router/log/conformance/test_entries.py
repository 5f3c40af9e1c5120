"""Guarantees of every log engine: changes and reads, and pages with and without them."""

from __future__ import annotations

from typing import Any

import pytest
from trunkline.v1.frame_pb2 import ReadFrame
from trunkline.v1.message_pb2 import Change, Message
from trunkline_router.core.values.log_records import (
    AppendResult,
    Entry,
    EntryKind,
    Page,
    PageRequest,
    Producer,
)
from trunkline_router.core.values.topics import EMPTY, Position
from trunkline_router.log.interface import Log

from tests.router.log.engines import (
    ALICE,
    BOB,
    NOW_MS,
    OTHER_TENANT,
    Opener,
    a_key,
    append,
    edit,
    end,
    pending_entry,
    position,
    read,
    recall,
    stored_size,
    with_message,
)

WORKER = Producer("worker", 1)


async def page(log: Log, limit: int = 100, **where: Any) -> Page:
    return (await log.read([PageRequest(ALICE, limit, **where)]))[0]


async def seqs(log: Log, limit: int = 100, **where: Any) -> tuple[list[int], bool]:
    """Read a page of ALICE's messages. Returns its seqs, and whether there are more."""
    found = await page(log, limit, messages_only=True, **where)
    return [entry.seq for entry in found.entries], found.more


# Changes and reads


async def test_entries_of_all_kinds_are_numbered_together(log: Log) -> None:
    (first,) = await append(log, pending_entry())
    pending_entries = await append(
        log, edit(first), pending_entry(), read(ALICE, position(first)), pending_entry(BOB)
    )
    assert [d.result for d in pending_entries] == [AppendResult.COMMITTED] * 4
    assert [d.position.seq for d in pending_entries] == [2, 3, 4, 1]
    assert {d.position.epoch for d in pending_entries[:3]} == {first.position.epoch}
    assert await log.heads([ALICE]) == [Position(first.position.epoch, 4)]
    found = await page(log, after=EMPTY)
    assert [(entry.seq, entry.kind) for entry in found.entries] == [
        (1, EntryKind.MESSAGE),
        (2, EntryKind.CHANGE),
        (3, EntryKind.MESSAGE),
        (4, EntryKind.READ),
    ]


async def test_the_head_after_a_restart_is_the_last_entry(log: Log, opener: Opener) -> None:
    (first,) = await append(log, pending_entry())
    await append(log, read(ALICE, position(first)))
    await log.close()
    again = await opener()
    try:
        assert await again.heads([ALICE]) == [Position(first.position.epoch, 2)]
        (third,) = await append(again, pending_entry())
        assert third.position.seq == 3
    finally:
        await again.close()


async def test_a_committed_change_is_completed_and_stored_without_its_message(log: Log) -> None:
    (first,) = await append(log, pending_entry())
    one = edit(first)
    assert one.change is not None
    one.change.message.CopyFrom(first.message)
    await append(log, one)
    assert one.change.changed_at.ToMilliseconds() == NOW_MS
    assert one.message.updated_at.ToMilliseconds() == NOW_MS
    assert Change.FromString(one.stored) == one.change
    assert not Change.FromString(one.stored).HasField("message")
    assert Change.FromString(one.stored).message_id == first.message.id


async def test_a_committed_read_is_completed(log: Log) -> None:
    (first,) = await append(log, pending_entry())
    (one,) = await append(log, read(ALICE, position(first)))
    assert one.read is not None
    assert ReadFrame.FromString(one.stored) == one.read
    assert one.read.at == Position(first.position.epoch, 2).to_proto()
    assert (await page(log, after=position(first))).entries == [Entry(2, EntryKind.READ, one.stored)]


async def test_a_changed_message_is_read_in_its_present_form(log: Log) -> None:
    (first,) = await append(log, pending_entry(deliver=True))
    (one,) = await append(log, edit(first))
    now = one.message.SerializeToString()
    assert await log.message("acme", first.message.id) == now
    assert (await page(log, 1, after=EMPTY)).entries[0].body == now
    assert (await log.deliveries("acme", "echo", 0, 9))[0].message == now


async def test_the_last_change_in_a_transaction_wins(log: Log) -> None:
    (first, other) = await append(log, pending_entry(), pending_entry())
    await append(log, edit(first, "a"), edit(other, "b"), edit(first, "c"), edit(first, "d"))
    found = [Message.FromString(entry.body) for entry in (await page(log, 2, after=EMPTY)).entries]
    assert [one.parts[0].text.text for one in found] == ["d", "b"]


async def test_changes_do_not_count_as_messages(log: Log) -> None:
    (first,) = await append(log, pending_entry())
    (one,) = await append(log, edit(first))
    assert await log.message("acme", f"{one.position.epoch}-{one.position.seq}") is None


async def test_an_edit_brings_the_message_in_its_present_form(log: Log) -> None:
    (first,) = await append(log, pending_entry())
    (one,) = await append(log, edit(first, "x" * 300))
    (last,) = await append(log, recall(first))
    now = last.message.SerializeToString()
    for after in (EMPTY, position(first), None):
        found = await page(log, after=after)
        changes = [entry.body for entry in found.entries if entry.kind is EntryKind.CHANGE]
        # Never with a recall.
        assert changes == [with_message(one.stored, now), last.stored]


@pytest.mark.parametrize("size", [0, 127, 128, 16_383, 16_384, 300_000])
async def test_an_edit_brings_a_message_of_any_size(log: Log, size: int) -> None:
    (first,) = await append(log, pending_entry())
    (one,) = await append(log, edit(first, "x" * size))
    (entry,) = (await page(log, after=position(first))).entries
    assert Change.FromString(entry.body).message == one.message
    assert entry.body == with_message(one.stored, one.message.SerializeToString())


async def test_an_end_brings_its_message_only_if_it_precedes_the_page(log: Log) -> None:
    first, second = await append(log, pending_entry(producer=WORKER), pending_entry(producer=WORKER))
    one, two = await append(log, end(first), end(second))
    both = [with_message(d.stored, d.message.SerializeToString()) for d in (one, two)]
    alone = [one.stored, two.stored]

    async def changes(limit: int, **where: Any) -> list[bytes]:
        found = await page(log, limit, **where)
        return [entry.body for entry in found.entries if entry.kind is EntryKind.CHANGE]

    assert await changes(9, after=EMPTY) == alone
    assert await changes(9, after=position(first)) == [both[0], alone[1]]
    assert await changes(9, after=position(second)) == both
    assert await changes(9) == alone
    assert await changes(3) == [both[0], alone[1]]
    assert await changes(2) == both
    # A page that is cut brings the messages before the cut.
    assert await changes(9, max_bytes=1) == both[1:]


async def test_brought_messages_count_towards_the_bytes_of_a_page(log: Log) -> None:
    (first,) = await append(log, pending_entry())
    await append(log, edit(first, "x" * 1000), edit(first, "x" * 1000), pending_entry(text="y" * 500))
    assert len((await page(log, after=position(first), max_bytes=2000)).entries) == 1
    assert len((await page(log, after=position(first), max_bytes=2600)).entries) == 2
    assert [entry.seq for entry in (await page(log, max_bytes=2000)).entries] == [3, 4]


async def test_messages_that_ends_may_bring_count_when_a_page_is_cut(log: Log) -> None:
    (first,) = await append(log, pending_entry(producer=WORKER))
    await append(log, pending_entry(text="x" * 100), end(first, "y" * 1000), pending_entry())
    found = await page(log, max_bytes=1000)
    assert [entry.seq for entry in found.entries] == [4]
    assert found.more


async def test_a_repeated_change_gets_the_position_of_the_first(log: Log) -> None:
    key = a_key()
    (first,) = await append(log, pending_entry())
    (one,) = await append(log, edit(first, "once", key=key))
    again, new = await append(log, edit(first, "twice", key=key), pending_entry())
    other = edit(first, "thrice", key=key)
    other.digest = b"other"
    await append(log, other)
    assert [again.result, other.result] == [AppendResult.DUPLICATE, AppendResult.MISMATCH]
    assert (position(again), again.stored) == (position(one), b"")
    assert new.position.seq == 3
    assert other.change is not None
    assert not other.change.HasField("position")
    assert await log.message("acme", first.message.id) == one.message.SerializeToString()


async def test_changes_and_reads_of_an_erased_log_have_no_effect(log: Log) -> None:
    key = a_key()
    (first,) = await append(log, pending_entry())
    (kept,) = await append(log, edit(first, key=key))
    await log.reset(ALICE)
    for new in (False, True):
        if new:
            (other,) = await append(log, pending_entry(text="new"))
        stale = await append(
            log,
            edit(first),
            end(first),
            read(ALICE, position(first)),
            read(ALICE, EMPTY),
            edit(first, key=key),
        )
        assert [d.result for d in stale] == [AppendResult.NO_REPEAT] * 4 + [AppendResult.DUPLICATE]
        assert position(stale[4]) == position(kept)
        assert await log.receipts(ALICE, "", 9) == []
        assert [entry.body for entry in (await page(log)).entries] == ([other.stored] if new else [])


# Pages of messages only


async def test_pages_of_messages_are_full_despite_other_entries(log: Log) -> None:
    said = []
    for count in (0, 3, 1, 120, 0, 2):
        (one,) = await append(log, pending_entry())
        said.append(one.position.seq)
        await append(log, *(read(ALICE, position(one), f"u{n}") for n in range(count)))
    assert said == [1, 2, 6, 8, 129, 130]
    epoch = one.position.epoch
    assert await seqs(log) == (said, False)
    assert await seqs(log, 3) == (said[3:], True)
    assert await seqs(log, 2, before=Position(epoch, 129)) == ([6, 8], True)
    assert await seqs(log, 3, before=Position(epoch, 100)) == ([2, 6, 8], True)
    assert await seqs(log, 3, before=Position(epoch, 6)) == ([1, 2], False)
    assert await seqs(log, 2, after=EMPTY) == ([1, 2], True)
    assert await seqs(log, 2, after=Position(epoch, 5)) == ([6, 8], True)
    assert await seqs(log, 2, after=Position(epoch, 8)) == ([129, 130], False)
    # Only reads follow.
    assert await seqs(log, 2, after=Position(epoch, 130)) == ([], False)
    assert await seqs(log, 0, after=Position(epoch, 129)) == ([], True)
    assert await seqs(log, 0, after=Position(epoch, 130)) == ([], False)
    assert await seqs(log, 2, before=Position(epoch, 1)) == ([], False)


async def test_pages_of_messages_are_bounded_in_bytes(log: Log) -> None:
    for _ in range(3):
        (one,) = await append(log, pending_entry())
        await append(log, read(ALICE, position(one)))
    size = stored_size(log, one.stored)
    assert await seqs(log, max_bytes=2 * size) == ([3, 5], True)
    assert await seqs(log, after=EMPTY, max_bytes=2 * size) == ([1, 3], True)
    assert await seqs(log, after=EMPTY, max_bytes=0) == ([1], True)
    assert await seqs(log, after=EMPTY, max_bytes=3 * size) == ([1, 3, 5], False)


async def test_pages_of_messages_and_of_all_entries_are_read_together(log: Log) -> None:
    (one,) = await append(log, pending_entry())
    await append(log, edit(one), pending_entry(BOB))
    other = Position("0" * 13, 1)
    pages = await log.read(
        [
            PageRequest(ALICE, 5, messages_only=True),
            PageRequest(BOB, 5),
            PageRequest(OTHER_TENANT, 5, messages_only=True),
            PageRequest(ALICE, 5),
            PageRequest(ALICE, 5, after=other, messages_only=True),
        ]
    )
    assert [[entry.seq for entry in found.entries] for found in pages] == [[1], [1], [], [1, 2], []]
    assert [found.valid for found in pages] == [True, True, True, True, False]
    assert not any(found.more for found in pages)
