"""Edits, recalls and receipts as clients see them."""

from __future__ import annotations

from typing import Any

import pytest
from trunkline.v1.frame_pb2 import AckFrame
from trunkline.v1.message_pb2 import CHANGE_KIND_EDITED, CHANGE_KIND_RECALLED, Author, Message
from trunkline_router.core.clients import receipts
from trunkline_router.core.clients.edits import EditRequest

from tests.router.core.harness.client import OPEN, RECALLED, Client, text_of
from tests.router.core.harness.invariants import check_all
from tests.router.core.harness.producers import Streaming
from tests.router.core.harness.router import ALICE, ROOM, Backend, Router


def published(router: Router, *, user: str = "x") -> tuple[Client, Client, str]:
    """Return the author of a message, another client, and the message's id."""
    author, other = router.connected(ROOM, user=user), router.connected(ROOM, user="y", edge="e2")
    router.say(author, "first", ident="m")
    router.run()
    return author, other, "e1-1"


def edit(router: Router, client: Client, message_id: str, text: str, ident: str = "") -> None:
    """Edit a message."""
    router.frame(client, edit={"id": ident, "message_id": message_id, "parts": [{"text": {"text": text}}]})


def recall(router: Router, client: Client, message_id: str, ident: str = "") -> None:
    """Recall a message."""
    router.frame(client, recall={"id": ident, "message_id": message_id})


def stored(router: Router, message_id: str) -> Message:
    """Return a message as the log holds it."""
    body = router.log.message("t", message_id)
    assert body is not None
    return Message.FromString(body)


def errors(client: Client) -> list[str]:
    """Return the codes of a client's errors."""
    return [frame.error.code for frame in client.frames if frame.HasField("error")]


def test_an_edit_is_acked_and_reaches_the_others_with_the_new_parts() -> None:
    router = Router()
    author, other, message_id = published(router)
    edit(router, author, message_id, "second")
    assert "change" not in other.kinds()
    router.run()
    change = other.frames[-1].change
    assert (change.kind, change.position.seq, change.author.user) == (CHANGE_KIND_EDITED, 2, "x")
    assert (text_of(change.message), other.text(message_id)) == ("second", "second")
    ack = author.last("ack")
    assert isinstance(ack, AckFrame)
    assert (ack.message_id, ack.position.seq, author.place[ROOM].seq) == (message_id, 2, 2)
    assert "change" not in author.kinds()


def test_a_recall_removes_the_parts_and_withdraws_the_delivery() -> None:
    router = Router()
    author, other, message_id = published(router)
    recall(router, author, message_id)
    router.run()
    assert other.frames[-1].change.kind == CHANGE_KIND_RECALLED
    assert (stored(router, message_id).state, list(stored(router, message_id).parts)) == (RECALLED, [])
    assert other.known[message_id].state == RECALLED
    assert not router.log.unsettled
    recall(router, author, message_id)
    router.run()
    ack = author.last("ack")
    assert isinstance(ack, AckFrame)
    assert (ack.message_id, ack.HasField("position")) == (message_id, False)
    edit(router, author, message_id, "again")
    router.run()
    assert errors(author) == ["MESSAGE_RECALLED"]


def test_changes_of_one_message_build_on_each_other() -> None:
    router = Router()
    author, other, message_id = published(router)
    edit(router, author, message_id, "1")
    recall(router, author, message_id)
    edit(router, author, message_id, "2")
    router.run()
    kinds = [change.kind for change in router.log.changes(ROOM)]
    assert kinds == [CHANGE_KIND_EDITED, CHANGE_KIND_RECALLED]
    assert errors(author) == ["MESSAGE_RECALLED"]
    assert other.known[message_id].state == stored(router, message_id).state == RECALLED


@pytest.mark.parametrize("how", ["fail", "fail_read"])
def test_a_failed_change_does_not_block_those_behind_it(how: str) -> None:
    router = Router()
    author, other, message_id = published(router)
    edit(router, author, message_id, "1")
    edit(router, author, message_id, "2")
    if how == "fail":
        router.read_log()
        router.return_reads()
    getattr(router, how)()
    router.run()
    assert errors(author) == ["LOG_UNAVAILABLE"]
    assert other.text(message_id) == "2"
    check_all(router.core, router.log, at_rest=True)


def test_a_retried_edit_changes_nothing_more() -> None:
    router = Router()
    author, _, message_id = published(router)
    for text, ident in (("1", "a"), ("2", "b"), ("1", "a")):
        edit(router, author, message_id, text, ident)
        router.run()
    assert text_of(stored(router, message_id)) == "2"
    acks = [f.ack.position.seq for f in author.frames if f.HasField("ack")]
    assert acks == [1, 2, 3, 2]
    edit(router, author, message_id, "other", "a")
    router.run()
    assert errors(author) == ["IDEMPOTENCY_MISMATCH"]


@pytest.mark.parametrize("seen", ["queued", "reading", "read"])
def test_a_log_erased_meanwhile_is_not_changed(seen: str) -> None:
    router = Router()
    author, _, message_id = published(router)
    edit(router, author, message_id, "late")
    if seen != "queued":
        router.read_log()
    if seen == "read":
        router.return_reads()
    router.reset(ROOM)
    router.say(author, "new", ident="new")
    router.run()
    assert errors(author) == ["MESSAGE_NOT_FOUND"]
    assert text_of(stored(router, "e2-1")) == "new"
    check_all(router.core, router.log, at_rest=True)


def test_only_a_subscribed_author_may_change_a_message() -> None:
    router = Router()
    _, other, message_id = published(router)
    elsewhere, anonymous = router.connected(ALICE, user="x"), router.connected(ROOM)
    for client, reason in ((other, "NOT_THE_AUTHOR"), (elsewhere, "MESSAGE_NOT_FOUND")):
        edit(router, client, message_id, "forged")
        router.run()
        assert errors(client) == [reason]
    router.say(anonymous, "by nobody")
    router.run()
    recall(router, anonymous, "e1-2")
    router.run()
    assert errors(anonymous) == ["NOT_THE_AUTHOR"]


def test_an_open_message_cannot_be_changed() -> None:
    router = Router()
    client = router.connected(ALICE, user="x")
    Streaming(router).open(ALICE)
    router.run()
    (message_id,) = router.log.open
    backend = Backend()
    wish = EditRequest(
        "t", message_id, CHANGE_KIND_EDITED, Author(), lambda message: None, backend, lambda: None
    )
    router.core.edits.submit(wish)
    router.run()
    assert backend.reason is not None
    assert backend.reason.entry.code == "MESSAGE_OPEN"
    assert client.known[message_id].state == OPEN


# Receipts


def test_a_read_receipt_is_an_entry_that_all_receive_once() -> None:
    router = Router()
    author, other, _ = published(router)
    position = other.place[ROOM].to_proto()
    router.frame(other, read={"position": position, "user": "forged"})
    assert "read" not in other.kinds()
    router.run()
    for client in (author, other):
        read = client.frames[-1].read
        assert (read.user, read.position.seq, read.at.seq) == ("y", 1, 2)
        assert read.conversation.id == "room"
    (receipt,) = router.log.receipts(ROOM)
    assert (receipt.user, receipt.read) == ("y", 1)
    router.frame(other, read={"position": position})
    router.run()
    assert (router.log.head(ROOM).seq, other.frames[-1].read.HasField("at")) == (2, False)


def test_a_delivery_receipt_is_stored_and_sent_to_the_author_alone() -> None:
    router = Router()
    author, other, _ = published(router)
    position = other.place[ROOM].to_proto()
    for _ in range(2):
        router.frame(other, delivered={"position": position})
        router.run()
    assert author.kinds().count("delivered") == 1
    receipt = author.frames[-1].delivered
    assert (receipt.user, receipt.position.seq, receipt.conversation.id) == ("y", 1, "room")
    assert "delivered" not in other.kinds()
    (receipt,) = router.log.receipts(ROOM)
    assert (receipt.delivered, receipt.read, router.log.head(ROOM).seq) == (1, 0, 1)


@pytest.mark.parametrize("kind", ["read", "delivered"])
def test_a_receipt_that_was_not_committed_can_be_sent_again(kind: str) -> None:
    router = Router()
    _, other, _ = published(router)
    more: dict[str, Any] = {kind: {"position": other.place[ROOM].to_proto()}}
    router.frame(other, **more)
    router.fail()
    assert errors(other) == (["LOG_UNAVAILABLE"] if kind == "read" else [])
    router.frame(other, **more)
    router.run()
    (receipt,) = router.log.receipts(ROOM)
    assert getattr(receipt, kind) == 1


def test_receipts_without_a_user_or_for_an_erased_log_are_rejected() -> None:
    router = Router()
    _, other, _ = published(router)
    anonymous = router.connected(ROOM)
    position = other.place[ROOM].to_proto()
    router.frame(anonymous, read={"position": position})
    assert errors(anonymous) == ["INVALID_ARGUMENT"]
    router.frame(other, read={"position": position})
    router.reset(ROOM)
    router.frame(other, read={"position": position})
    assert errors(other) == ["CURSOR_MISMATCH", "CURSOR_MISMATCH"]
    router.run()
    assert not router.log.logs


def test_cached_receipts_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(receipts, "MAX_CACHED", 1)
    router = Router()
    author, other, _ = published(router)
    position = other.place[ROOM].to_proto()
    for client in (author, other, author):
        router.frame(client, read={"position": position})
        router.run()
    assert [read.user for read in router.log.reads(ROOM)] == ["x", "y", "x"]


@pytest.mark.parametrize("change", [edit, recall])
def test_a_change_of_an_erased_users_message_is_refused_with_the_messages_id(change: Any) -> None:
    router = Router()
    author, _, message_id = published(router)
    words = ("second",) if change is edit else ()
    change(router, author, message_id, *words)
    while not router.core.effects.commit_queue:
        router.read_log()
        router.return_reads()
    router.core.user_erased("t", "x", [])
    router.run()
    [error] = [frame.error for frame in author.frames if frame.HasField("error")]
    assert (error.code, error.message) == ("MESSAGE_NOT_FOUND", f"Message {message_id} does not exist")
