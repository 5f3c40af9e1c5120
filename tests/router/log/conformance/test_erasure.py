"""Guarantees of every log engine: erasure of tenants and users."""

from __future__ import annotations

from typing import Any

import pytest
from trunkline.v1.frame_pb2 import ReadFrame
from trunkline.v1.message_pb2 import MESSAGE_STATE_RECALLED, ROLE_USER, Author, Change, Message
from trunkline_router.core.values.log_records import (
    AppendResult,
    DeadLettered,
    DeliveredPosition,
    EntryKind,
    ErasedPiece,
    PageRequest,
    PendingEntry,
    Producer,
    Transaction,
)
from trunkline_router.core.values.stored_records import Registration, StoredTenant
from trunkline_router.core.values.topics import EMPTY, GROUP, NO_TARGET, PERSON, USER, TopicKey
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
    pending_entry,
    position,
    read,
    recall,
)
from tests.router.log.whole_erasures import erase_tenant, erase_user, prune

ROOM: TopicKey = ("acme", "echo", "web", GROUP, "alice")
MINE: TopicKey = ("acme", "", "", USER, "alice")
ELSEWHERE: TopicKey = ("acme", "other", "app", PERSON, "alice")
PLATFORM: TopicKey = ("acme", "echo", "web", NO_TARGET, "")
WORKER = Producer("worker", 1)


async def bodies(log: Any, topic: TopicKey) -> list[tuple[EntryKind, bytes]]:
    (found,) = await log.read([PageRequest(topic, 10_000, after=EMPTY)])
    assert found.valid
    return [(entry.kind, entry.body) for entry in found.entries]


async def users(log: Any, topic: TopicKey) -> list[str]:
    return [each.user for each in await log.receipts(topic, "", 99)]


async def give(log: Any, user: str, *pending_entries: PendingEntry) -> None:
    await log.append(
        Transaction(delivered=[DeliveredPosition(one.topic, user, position(one)) for one in pending_entries])
    )


async def give_up(log: Any, *pending_entries: PendingEntry) -> None:
    await log.append(
        Transaction(dead_lettered=[DeadLettered(one.delivery_id, 1, "no use") for one in pending_entries])
    )


# Tenants


async def test_erasing_a_tenant_erases_its_logs_with_all_their_rows(any_log: Any) -> None:
    pending_entries = await append(
        any_log,
        *(pending_entry(topic, deliver=topic is ALICE) for topic in (ALICE, ALICE, ROOM, MINE, PLATFORM)),
    )
    other = pending_entry(OTHER_TENANT, deliver=True)
    await append(
        any_log,
        other,
        edit(pending_entries[0]),
        read(ALICE, position(pending_entries[0])),
        pending_entry(producer=WORKER),
    )
    await give_up(any_log, pending_entries[1])
    erased = await erase_tenant(any_log)
    assert (erased.messages, sorted(erased.topics)) == (6, sorted([ALICE, ROOM, MINE, PLATFORM]))
    for topic in (ALICE, ROOM, MINE, PLATFORM):
        assert (await bodies(any_log, topic), await users(any_log, topic)) == ([], [])
    assert await any_log.heads([ALICE, ROOM]) == [EMPTY, EMPTY]
    assert await any_log.message("acme", pending_entries[0].message.id) is None
    assert await any_log.open_messages() == []
    assert await any_log.deliveries("acme", "echo", 0, 9) == []
    assert await any_log.dead_letters("acme", "echo", 0, 9) == []
    assert [d.delivery_id for d in await any_log.deliveries("evil", "echo", 0, 9)] == [other.delivery_id]
    assert await bodies(any_log, OTHER_TENANT) == [(EntryKind.MESSAGE, other.stored)]
    assert await erase_tenant(any_log) == ErasedPiece(0)


async def test_a_tenant_declared_again_gets_new_epochs_and_ids(log: Log, opener: Opener) -> None:
    key = a_key()
    old = await append(log, pending_entry(deliver=True, key=key), pending_entry(deliver=True))
    assert await log.heads([ALICE]) == [position(old[1])]
    await erase_tenant(log)
    assert log.head(ALICE) in (None, EMPTY)
    (repeat,) = await append(log, pending_entry(key=key))
    assert (repeat.result, repeat.message.id) == (AppendResult.DUPLICATE, old[0].message.id)
    (first,) = await append(log, pending_entry(deliver=True))
    assert first.position.seq == 1
    assert first.position.epoch != old[0].position.epoch
    assert first.delivery_id > old[1].delivery_id
    assert [body for _, body in await bodies(log, ALICE)] == [first.stored]
    await erase_tenant(log)
    await log.close()
    again = await opener()
    try:
        (second,) = await append(again, pending_entry(deliver=True))
        assert second.position.epoch not in (old[0].position.epoch, first.position.epoch)
        assert second.delivery_id > first.delivery_id
        for _ in range(3):
            await again.sweep(NOW_MS)
            assert [body for _, body in await bodies(again, ALICE)] == [second.stored]
    finally:
        await again.close()


async def test_a_tenant_stays_registered_until_its_last_log_is_erased(any_log: Any) -> None:
    tenant = StoredTenant("acme", 3, b"", 1, 1)
    await any_log.register(Registration([tenant]))
    topics: list[TopicKey] = [("acme", "echo", "web", PERSON, str(n)) for n in range(600)]
    await append(
        any_log, *map(pending_entry, topics), *map(pending_entry, topics), pending_entry(OTHER_TENANT)
    )
    erased: list[TopicKey] = []
    messages = pieces = 0
    more = True
    while more:
        assert (await any_log.registered()).tenants == [tenant]
        piece = await any_log.erase_tenant("acme")
        erased += piece.topics
        messages += piece.messages
        pieces += 1
        more = piece.cursor is not None
        # Other calls run meanwhile.
        await append(any_log, pending_entry(OTHER_TENANT))
    assert (await any_log.registered()).tenants == []
    assert sorted(erased) == sorted(topics)
    assert messages == 1200
    assert pieces >= 3
    assert len(await bodies(any_log, OTHER_TENANT)) == pieces + 1


async def test_pruned_messages_are_not_counted_as_erased(any_log: Any) -> None:
    first, *_ = await append(any_log, *(pending_entry() for _ in range(5)))
    await append(any_log, edit(first))
    assert await prune(any_log, max_messages=3) == 3
    assert (await erase_tenant(any_log)).messages == 2


# Users


async def test_a_users_own_logs_are_erased_as_a_whole(any_log: Any) -> None:
    own = (MINE, ALICE, ELSEWHERE)
    pending_entries = await append(
        any_log, *(pending_entry(topic, user="bob", deliver=True) for topic in (*own, ROOM, BOB))
    )
    await give(any_log, "alice", *pending_entries)
    await give(any_log, "bob", *pending_entries)
    erased = await erase_user(any_log, "alice")
    assert (erased.messages, erased.receipts, sorted(erased.topics)) == (3, 5, sorted(own))
    for topic in own:
        assert (await bodies(any_log, topic), await users(any_log, topic)) == ([], [])
    assert await any_log.heads(list(own)) == [EMPTY] * 3
    for topic, one in ((ROOM, pending_entries[3]), (BOB, pending_entries[4])):
        assert await bodies(any_log, topic) == [(EntryKind.MESSAGE, one.stored)]
        assert await users(any_log, topic) == ["bob"]
    assert len(await any_log.deliveries("acme", "echo", 0, 9)) == 2
    assert await any_log.deliveries("acme", "other", 0, 9) == []
    (first,) = await append(any_log, pending_entry())
    assert first.position.seq == 1


async def test_a_users_messages_in_other_logs_become_recalled_in_place(log: Log) -> None:
    one = pending_entry(BOB, "secret")
    one.message.author.name = "Alice"
    one.message.client_id = "c1"
    one.message.reply_to = "x"
    one.message.attributes["phone"] = "123"
    one.message.error.message = "secret"
    theirs, same = pending_entry(BOB, user="bob"), pending_entry(ROOM)
    await append(log, theirs, one, same, pending_entry(OTHER_TENANT))
    others = await bodies(log, OTHER_TENANT)
    erased = await erase_user(log, "alice")
    assert erased == ErasedPiece(2)
    expected = Message(
        id=one.message.id,
        address=one.message.address,
        position=one.message.position,
        author=Author(role=ROLE_USER),
        state=MESSAGE_STATE_RECALLED,
        created_at=one.message.created_at,
        updated_at=one.message.created_at,
    )
    found = await bodies(log, BOB)
    assert found[0] == (EntryKind.MESSAGE, theirs.stored)
    assert Message.FromString(found[1][1]) == expected
    assert await log.message("acme", one.message.id) == found[1][1]
    assert Message.FromString((await bodies(log, ROOM))[0][1]).id == same.message.id
    assert await bodies(log, OTHER_TENANT) == others
    assert await log.heads([BOB]) == [position(one)]
    assert await erase_user(log, "alice") == ErasedPiece(0)


async def test_changes_and_reads_of_an_erased_user_lose_the_name(any_log: Any) -> None:
    (one,) = await append(any_log, pending_entry(BOB, user="bob"))
    mine, theirs = edit(one), edit(one, "again")
    assert mine.change is not None
    assert theirs.change is not None
    mine.change.author.name = "Carol"
    theirs.change.author.user = "bob"
    await append(any_log, mine, theirs, recall(one))
    await append(any_log, read(BOB, position(one), "carol"), read(BOB, position(one), "bob"))
    before = await bodies(any_log, BOB)
    erased = await erase_user(any_log, "carol")
    assert (erased.messages, erased.receipts) == (0, 1)
    after = await bodies(any_log, BOB)
    assert [after[n] for n in (0, 2, 5)] == [before[n] for n in (0, 2, 5)]
    for n in (1, 3):
        had, has = Change.FromString(before[n][1]), Change.FromString(after[n][1])
        assert has.author == Author(role=ROLE_USER)
        has.author.CopyFrom(had.author)
        assert has == had
    had_read, has_read = ReadFrame.FromString(before[4][1]), ReadFrame.FromString(after[4][1])
    assert (had_read.user, has_read.user) == ("carol", "")
    had_read.ClearField("user")
    assert has_read == had_read
    assert await users(any_log, BOB) == ["bob"]


async def test_deliveries_of_an_erased_users_messages_are_deleted(any_log: Any) -> None:
    pending_entries = await append(
        any_log,
        *(pending_entry(ROOM, user=user, deliver=True) for user in ("alice", "bob") for _ in range(2)),
    )
    await give_up(any_log, pending_entries[0], pending_entries[2])
    assert (await erase_user(any_log, "alice")).messages == 2
    assert [d.delivery_id for d in await any_log.deliveries("acme", "echo", 0, 9)] == [
        pending_entries[3].delivery_id
    ]
    assert [d.delivery_id for d in await any_log.dead_letters("acme", "echo", 0, 9)] == [
        pending_entries[2].delivery_id
    ]


async def test_open_messages_and_idempotency_keys_survive_an_erasure(any_log: Any) -> None:
    key = a_key()
    opened, said = await append(any_log, pending_entry(ROOM, producer=WORKER), pending_entry(ROOM, key=key))
    assert (await erase_user(any_log, "alice")).messages == 1
    assert (await bodies(any_log, ROOM))[0] == (EntryKind.MESSAGE, opened.stored)
    assert [each.message for each in await any_log.open_messages()] == [opened.stored]
    (repeat,) = await append(any_log, pending_entry(ROOM, key=key))
    assert (repeat.result, repeat.message.id) == (AppendResult.DUPLICATE, said.message.id)


async def test_a_pending_change_does_not_restore_an_erased_message(any_log: Any) -> None:
    (one,) = await append(any_log, pending_entry(ROOM, "secret"))
    late = edit(one, "secret, still")
    await erase_user(any_log, "alice")
    erased = await any_log.message("acme", one.message.id)
    await append(any_log, late)
    assert (late.result, late.position.seq) == (AppendResult.COMMITTED, 2)
    assert await any_log.message("acme", one.message.id) == erased
    assert b"secret" not in b"".join(body for _, body in await bodies(any_log, ROOM))


async def test_a_user_is_erased_from_long_and_many_logs_while_others_write(any_log: Any) -> None:
    topics: list[TopicKey] = [("acme", "echo", "web", GROUP, str(n)) for n in range(600)]
    await append(any_log, *(pending_entry(ROOM, user=("alice", "bob")[n % 2]) for n in range(5000)))
    await append(any_log, *map(pending_entry, topics))
    cursor = None
    messages = pieces = 0
    while pieces == 0 or cursor is not None:
        piece = await any_log.erase_user("acme", "alice", cursor)
        cursor, messages, pieces = piece.cursor, messages + piece.messages, pieces + 1
        await append(any_log, pending_entry(OTHER_TENANT))
    assert messages == 3100
    assert pieces > 3
    for topic in (ROOM, *topics):
        authors = [Message.FromString(body).author.user for _, body in await bodies(any_log, topic)]
        assert "alice" not in authors
    assert len(authors) == 1


async def test_an_erasure_skips_pruned_messages(any_log: Any) -> None:
    await append(any_log, *(pending_entry(ROOM) for _ in range(5)))
    await prune(any_log, max_messages=2)
    assert (await erase_user(any_log, "alice")).messages == 2
    assert (await any_log.heads([ROOM]))[0].seq == 5
    assert len(await bodies(any_log, ROOM)) == 2


@pytest.mark.parametrize("name", ["\0", "a\0", "'"])
async def test_erasing_what_nobody_wrote_erases_nothing(log: Log, name: str) -> None:
    (one,) = await append(log, pending_entry(ROOM))
    assert await erase_tenant(log, name) == ErasedPiece(0)
    assert await erase_user(log, name) == ErasedPiece(0)
    assert await erase_user(log, "alice", name) == ErasedPiece(0)
    assert await prune(log, name, max_messages=1) == 0
    assert await log.reset((name, "echo", "web", PERSON, name)) == 0
    assert await bodies(log, ROOM) == [(EntryKind.MESSAGE, one.stored)]
