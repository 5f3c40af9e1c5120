"""Resuming after a user's delivery receipts."""

from __future__ import annotations

from typing import Any
from unittest.mock import patch

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from trunkline.v1.address_pb2 import Address
from trunkline_router.core.clients import subscribing
from trunkline_router.core.commits.effects import ReadDelivered
from trunkline_router.core.directory.connections import default_topics
from trunkline_router.core.values.topics import EMPTY, GROUP, PERSON, USER, Position, TopicKey, address_of

from tests.router.core.harness.invariants import check_tables
from tests.router.core.harness.router import ALICE, PLATFORM, ROOM, Router

MINE: TopicKey = ("t", "", "", USER, "x")
TENANT: TopicKey = ("t", "", "", 0, "")


def publish(router: Router, key: TopicKey, *texts: str) -> None:
    """Commit messages to a topic."""
    for text in texts:
        router.broadcast(key, text)
    router.run()


def deliver_all(router: Router, *keys: TopicKey) -> None:
    """Connect as the user, receive everything, report it as delivered, and disconnect."""
    client = router.connected(ALICE, user="x")
    for key in keys:
        router.was_given(client, key)
    router.run()
    router.close(client)


def start_of(client: Any, key: TopicKey) -> Position:
    """Return the position that `connected` named for a topic."""
    (found,) = [e.position for e in client.frames[0].connected.positions if e.address == address_of(key)]
    return Position(found.epoch, found.seq)


def test_a_user_without_receipts_gets_everything_and_then_live_messages() -> None:
    router = Router()
    publish(router, MINE, "1", "2")
    publish(router, TENANT, "a")
    client = router.connected(ALICE, user="x", delivered=True)
    publish(router, MINE, "3")
    assert client.frames[0].connected.recovered
    assert (start_of(client, MINE), start_of(client, ALICE)) == (Position("e1", 0), EMPTY)
    assert sorted(client.texts[:-1]) == ["1", "2", "a"]
    assert client.texts[-1] == "3"


@pytest.mark.parametrize("restarts", [False, True])
def test_a_user_gets_exactly_what_its_receipts_do_not_cover(restarts: bool) -> None:
    router = Router()
    publish(router, MINE, "1", "2")
    publish(router, ALICE, "a", "b")
    deliver_all(router, MINE, ALICE)
    publish(router, MINE, "3", "4")
    publish(router, ALICE, "c")
    if restarts:
        router.restart()
        router.link("e1")
    client = router.connected(ALICE, user="x", delivered=True)
    assert client.frames[0].connected.recovered
    assert (start_of(client, MINE), start_of(client, ALICE)) == (Position("e1", 2), Position("e2", 2))
    assert sorted(client.texts) == ["3", "4", "c"]


def test_a_receipt_that_is_not_committed_yet_counts() -> None:
    router = Router()
    publish(router, MINE, "1", "2")
    teller = router.connected(ALICE, user="x")
    router.was_given(teller, MINE)
    client = router.open(ALICE, user="x", delivered=True)
    router.read_log()
    router.return_reads()
    router.run()
    assert client.texts == []
    assert client.frames[0].connected.recovered


def test_a_read_receipt_counts_as_delivered() -> None:
    router = Router()
    publish(router, ALICE, "1", "2")
    reader = router.connected(ALICE, user="x")
    router.frame(reader, read={"position": reader.place[ALICE].to_proto()})
    client = router.open(ALICE, user="x", delivered=True)
    router.read_log()
    router.return_reads()
    router.run()
    assert start_of(client, ALICE) == Position("e1", 2)
    router.restart()
    router.link("e1")
    assert router.connected(ALICE, user="x", delivered=True).texts == []


def test_an_older_receipt_that_arrives_later_changes_nothing() -> None:
    router = Router()
    publish(router, MINE, "1", "2", "3")
    deliver_all(router, MINE)
    router.restart()
    router.link("e1")
    old = router.connected(ALICE, user="x")
    router.was_given(old, MINE, Position("e1", 1))
    router.run()
    assert router.connected(ALICE, user="x", delivered=True).texts == []


def test_positions_in_resume_take_precedence_over_receipts() -> None:
    router = Router()
    publish(router, MINE, "1", "2")
    publish(router, ALICE, "a", "b")
    deliver_all(router, MINE, ALICE)
    client = router.connected(ALICE, user="x", delivered=True, resume={MINE: Position("e1", 1)})
    assert client.texts == ["2"]
    every = dict.fromkeys(default_topics(ALICE, "x"), EMPTY)
    client = router.open(ALICE, user="x", delivered=True, resume=every)
    assert not [read for read in router.core.effects.reads if isinstance(read, ReadDelivered)]
    router.run()
    assert sorted(client.texts) == ["1", "2", "a", "b"]


def test_a_connection_without_a_user_cannot_resume_by_delivery() -> None:
    router = Router()
    assert router.open(ALICE, delivered=True).close_reason == "INVALID_ADDRESS"
    assert not router.core.directory.topics


@pytest.mark.parametrize("limit", ["RECOVERY_MAX_MESSAGES", "RECOVERY_MAX_BYTES"])
def test_more_than_one_page_is_replayed_in_several(limit: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subscribing, limit, 2)
    router = Router()
    publish(router, MINE, "1", "2", "3", "4", "5")
    publish(router, ALICE, "a", "b", "c")
    client = router.connected(ALICE, user="x", delivered=True)
    assert client.frames[0].connected.recovered
    assert [text for text in client.texts if text.isdigit()] == ["1", "2", "3", "4", "5"]
    assert [text for text in client.texts if text.isalpha()] == ["a", "b", "c"]
    publish(router, MINE, "6")
    assert client.texts.count("6") == 1


@settings(max_examples=200, deadline=None)
@given(
    st.integers(1, 4),
    st.lists(st.sampled_from(["say", "write", "report_commit", "read_log", "return_reads"]), max_size=60),
)
def test_messages_committed_while_pages_are_read_follow_them_once(limit: int, steps: list[str]) -> None:
    with patch.object(subscribing, "RECOVERY_MAX_MESSAGES", limit):
        router = Router()
        publish(router, MINE, "1", "2", "3", "4", "5")
        client = router.open(ALICE, user="x", delivered=True)
        for number, step in enumerate(steps, 6):
            if step == "say":
                router.broadcast(MINE, str(number))
            else:
                getattr(router, step)()
        router.run()
    spoken = [str(number) for number, step in enumerate(steps, 6) if step == "say"]
    assert client.frames[0].connected.recovered
    assert client.texts == ["1", "2", "3", "4", "5", *spoken]


def test_a_log_erased_between_two_pages_makes_the_client_reconnect(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(subscribing, "RECOVERY_MAX_MESSAGES", 2)
    router = Router()
    publish(router, MINE, "1", "2", "3", "4", "5")
    client = router.open(ALICE, user="x", delivered=True)
    while not client.texts:
        router.read_log()
        router.return_reads()
    router.reset(MINE)
    router.run()
    assert client.close_reason == "ROUTER_UNAVAILABLE"
    assert not router.core.directory.topics


def test_receipts_of_an_erased_log_are_erased_with_it() -> None:
    router = Router()
    # In no order, like real epochs.
    router.log._epochs = iter(["e9", "e1"])
    publish(router, MINE, "1", "2")
    deliver_all(router, MINE)
    router.reset(MINE)
    publish(router, MINE, "new 1", "new 2", "new 3")
    assert router.connected(ALICE, user="x", delivered=True).texts == ["new 1", "new 2", "new 3"]


def test_a_log_erased_while_receipts_are_read_recovers_nothing() -> None:
    router = Router()
    publish(router, MINE, "1", "2")
    deliver_all(router, MINE)
    publish(router, MINE, "3")
    client = router.open(ALICE, user="x", delivered=True)
    router.read_log()
    router.reset(MINE)
    router.return_reads()
    router.run()
    assert (client.frames[0].connected.recovered, client.texts) == (False, [])


@pytest.mark.parametrize("gone", ["close", "break", "relink", "lease"])
def test_a_connection_closed_while_receipts_are_read_leaves_no_trace(gone: str) -> None:
    router = Router()
    publish(router, MINE, "1")
    client = router.open(ALICE, user="x", delivered=True)
    router.read_log()
    if gone == "close":
        router.close(client)
    else:
        client.edge.clients.clear()
        router.break_link()
        if gone == "relink":
            router.link("e1")
        elif gone == "lease":
            router.tick(11)
    router.run()
    assert not router.core.directory.topics
    assert not client.frames
    check_tables(router.core, at_rest=True)


def test_a_link_reopened_while_receipts_are_read_opens_the_connection_once() -> None:
    router = Router()
    publish(router, MINE, "1")
    client = router.open(ALICE, user="x", delivered=True)
    router.read_log()
    router.break_link()
    router.link("e1")
    router.run()
    assert client.texts == ["1"]
    check_tables(router.core, at_rest=True)


def test_a_failed_read_of_receipts_for_a_closed_connection_is_harmless() -> None:
    router = Router()
    router.open(ALICE, user="x", delivered=True)
    router.break_link()
    router.fail_read()
    check_tables(router.core, at_rest=True)


def test_a_failed_read_of_receipts_closes_the_connection() -> None:
    router = Router()
    client = router.open(ALICE, user="x", delivered=True)
    router.fail_read()
    assert client.close_reason == "ROUTER_UNAVAILABLE"
    assert not router.core.directory.topics


@settings(max_examples=100, deadline=None)
@given(
    st.lists(
        st.sampled_from(["say", "give", "write", "report_commit", "read_log", "return_reads", "link"]),
        max_size=25,
    )
)
def test_in_any_order_of_events_a_client_gets_every_message_once(steps: list[str]) -> None:
    router = Router()
    publish(router, MINE, "1", "2")
    deliver_all(router, MINE)
    publish(router, MINE, "3")
    teller = router.connected(ALICE, user="x", edge="e2")
    client = router.open(ALICE, user="x", delivered=True)
    for number, step in enumerate(steps, 4):
        if step == "say":
            router.broadcast(MINE, str(number))
        elif step == "give":
            router.was_given(teller, MINE)
        elif step == "link":
            router.link("e1")
        else:
            getattr(router, step)()
    router.run()
    assert client.frames[0].connected.recovered
    # The client itself checks for gaps and duplicates.
    start = start_of(client, MINE)
    assert start == Position("e1", 2) or ("give" in steps and start.seq > 2)
    assert client.place[MINE] == router.log.head(MINE)
    assert client.texts[0:1] == ["3"] or start.seq > 2


# Receipts


def test_receipts_cover_every_subscribed_topic_and_notify_only_in_conversations() -> None:
    router = Router()
    author = router.connected(ROOM, user="x")
    client = router.connected(ROOM, user="y")
    yours: TopicKey = ("t", "", "", USER, "y")
    heard = [TENANT, ("t", "a", "", 0, ""), PLATFORM, ROOM, yours]
    for key in heard:
        for text in ("1", "2"):
            router.broadcast(key, text, author={"user": "" if key == ROOM else "x"})
        router.run()
        router.was_given(client, key)
        router.run()
        (receipt,) = router.log.receipts(key)
        assert (receipt.user, receipt.delivered) == ("y", 2)
    router.say(author, "mine")
    router.run()
    router.was_given(client, ROOM)
    router.run()
    assert [f.delivered.position.seq for f in author.frames if f.HasField("delivered")] == [3]


@pytest.mark.parametrize(
    ("frame", "code"),
    [
        ({"address": {"tenant": "t", "user": "other"}}, "NOT_SUBSCRIBED"),
        ({"address": {"tenant": "u", "user": "x"}}, "NOT_SUBSCRIBED"),
        ({"address": {"tenant": "t", "agent": "b"}}, "NOT_SUBSCRIBED"),
        ({"address": address_of(("t", "a", "w", GROUP, "other"))}, "NOT_SUBSCRIBED"),
        ({"address": {"tenant": "t", "connection": "e1-c1"}}, "INVALID_ARGUMENT"),
        ({"address": {}}, "INVALID_ARGUMENT"),
        (
            {"address": {"tenant": "t", "user": "x"}, "conversation": {"kind": PERSON, "id": "alice"}},
            "INVALID_ARGUMENT",
        ),
        ({"address": {"tenant": "t", "user": "x"}, "position": {"epoch": "e1", "seq": 9}}, "CURSOR_MISMATCH"),
        ({"address": {"tenant": "t"}}, "CURSOR_MISMATCH"),
    ],
)
def test_a_receipt_for_an_unsubscribed_topic_is_rejected(frame: dict[str, Any], code: str) -> None:
    router = Router()
    publish(router, MINE, "1")
    client = router.connected(ALICE, user="x")
    if "address" in frame and isinstance(frame["address"], dict):
        frame = frame | {"address": Address(**frame["address"])}
    router.frame(client, delivered={"position": {"epoch": "e1", "seq": 1}} | frame)
    router.run()
    assert client.frames[-1].error.code == code
    assert not router.log.receipts(MINE)
