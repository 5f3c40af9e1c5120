"""Connecting, resuming and subscribing: from a position to live without a gap, or no recovery at all."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from trunkline_router.core.clients import subscribing
from trunkline_router.core.values.topics import EMPTY, GROUP, PERSON, Position, TopicKey

from tests.router.core.harness.invariants import check_tables
from tests.router.core.harness.router import ALICE, PLATFORM, ROOM, Router

TENANT: TopicKey = ("t", "", "", 0, "")


def publish(router: Router, key: TopicKey, *texts: str) -> None:
    """Commit messages to a topic."""
    for text in texts:
        router.broadcast(key, text)
    router.run()


def test_connected_names_the_head_of_each_topic() -> None:
    router = Router()
    publish(router, ALICE, "1", "2")
    publish(router, TENANT, "3")
    client = router.connected(ALICE, user="x")
    connected = client.frames[0].connected
    assert not connected.recovered
    assert [(p.position.epoch, p.position.seq) for p in connected.positions] == [
        ("e2", 1),
        ("", 0),
        ("", 0),
        ("e1", 2),
        ("", 0),
    ]
    assert connected.positions[4].address.user == "x"
    assert client.texts == []


def test_a_resumed_client_gets_exactly_what_it_missed_and_then_live_messages() -> None:
    router = Router()
    publish(router, ALICE, "1", "2", "3")
    publish(router, TENANT, "a", "b")
    client = router.connected(ALICE, resume={ALICE: Position("e1", 1), TENANT: EMPTY})
    publish(router, ALICE, "4")
    assert client.frames[0].connected.recovered
    assert sorted(client.texts[:-1]) == ["2", "3", "a", "b"]
    assert client.texts[-1] == "4"


def test_a_client_that_resumes_at_the_head_is_recovered_without_reading_pages() -> None:
    router = Router(peeks=True)
    publish(router, ALICE, "1")
    client = router.open(ALICE, resume={ALICE: Position("e1", 1)})
    assert client.frames[0].connected.recovered
    assert client.texts == []


@pytest.mark.parametrize(
    "steps",
    [
        "write report_commit read_log return_reads",
        "read_log return_reads write report_commit",
        "read_log write report_commit return_reads",
    ],
)
@pytest.mark.parametrize("is_heard", [False, True])
def test_messages_committed_while_the_log_is_read_come_exactly_once(steps: str, is_heard: bool) -> None:
    router = Router()
    publish(router, ALICE, "1", "2")
    if is_heard:
        router.connected(ALICE)
    client = router.open(ALICE, resume={ALICE: Position("e1", 1)})
    # The heads of the topics.
    router.read_log()
    router.return_reads()
    router.broadcast(ALICE, "3")
    for step in steps.split():
        getattr(router, step)()
    publish(router, ALICE, "4")
    assert client.frames[0].connected.recovered
    assert client.texts == ["2", "3", "4"]


def test_a_topic_that_advances_while_another_is_read_leaves_no_gap() -> None:
    router = Router()
    publish(router, ALICE, "1", "2")
    client = router.open(ALICE, resume={ALICE: Position("e1", 1), TENANT: EMPTY})
    # The heads of the topics; the tenant's is at the client's position.
    router.read_log()
    router.return_reads()
    router.broadcast(TENANT, "to all")
    router.write()
    router.report_commit()
    router.read_log()
    router.return_reads()
    router.run()
    assert client.frames[0].connected.recovered
    assert sorted(client.texts) == ["2", "to all"]


@pytest.mark.parametrize("is_heard", [False, True])
def test_a_page_read_ahead_of_the_core_makes_no_duplicate(is_heard: bool) -> None:
    router = Router()
    publish(router, ALICE, "1", "2")
    other = router.connected(ALICE) if is_heard else None
    client = router.open(ALICE, resume={ALICE: Position("e1", 1)})
    router.read_log()
    router.return_reads()
    router.broadcast(ALICE, "3")
    router.write()
    router.read_log()
    router.return_reads()
    router.report_commit()
    assert client.texts == ["2", "3"]
    assert other is None or other.texts == ["3"]


@pytest.mark.parametrize(
    "resume",
    [
        {ALICE: Position("e9", 1)},
        {ALICE: Position("e1", 1), ROOM: Position("e1", 1)},
        {("u", "a", "w", PERSON, "alice"): Position("e1", 1)},
        {ALICE: Position("e1", 1), TENANT: Position("e9", 3)},
    ],
)
def test_a_position_that_cannot_be_resumed_recovers_nothing_at_all(
    resume: dict[TopicKey, Position],
) -> None:
    router = Router()
    publish(router, ALICE, "1", "2")
    client = router.connected(ALICE, resume=resume)
    assert not client.frames[0].connected.recovered
    assert client.texts == []
    assert client.place[ALICE] == Position("e1", 2)
    publish(router, ALICE, "3")
    assert client.texts == ["3"]


def test_a_position_beyond_the_end_begins_a_new_epoch_before_anything_new() -> None:
    router = Router()
    publish(router, ALICE, "1", "2")
    there = router.connected(ALICE)
    client = router.open(ALICE, resume={ALICE: Position("e1", 9)})
    router.read_log()
    router.return_reads()
    sent = router.broadcast(ALICE, "3")
    router.run()
    assert not client.frames[0].connected.recovered
    assert sent.response.position.epoch == "e2"
    assert client.place[ALICE] == there.place[ALICE] == Position("e2", 3)
    assert client.texts == there.texts == ["3"]
    # A client that makes up positions achieves this once.
    liar = router.connected(ALICE, resume={ALICE: Position("e2", 9)})
    assert not liar.frames[0].connected.recovered
    publish(router, ALICE, "4")
    assert there.place[ALICE] == Position("e2", 4)
    again = router.connected(ALICE, resume={ALICE: Position("e2", 3)})
    assert (again.frames[0].connected.recovered, again.texts) == (True, ["4"])


def test_a_new_epoch_that_cannot_be_committed_comes_with_the_next_commit() -> None:
    router = Router()
    publish(router, ALICE, "1")
    client = router.open(ALICE, resume={ALICE: Position("e1", 9)})
    router.read_log()
    router.return_reads()
    router.fail()
    assert not router.core.effects.commit_queue
    publish(router, ALICE, "2")
    assert client.place[ALICE] == Position("e2", 2)


def test_the_start_of_a_log_that_lost_entries_cannot_be_resumed() -> None:
    router = Router()
    publish(router, ALICE, "1")
    assert router.connected(ALICE, resume={ALICE: EMPTY}).frames[0].connected.recovered
    router.connected(ALICE, resume={ALICE: Position("e1", 9)})
    assert not router.connected(ALICE, resume={ALICE: EMPTY}).frames[0].connected.recovered


def test_a_client_too_far_behind_is_not_recovered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subscribing, "RECOVERY_MAX_MESSAGES", 3)
    router = Router()
    publish(router, ALICE, "1", "2", "3", "4")
    near = router.connected(ALICE, resume={ALICE: Position("e1", 1)})
    far = router.connected(ALICE, resume={ALICE: EMPTY})
    assert (near.texts, far.texts) == (["2", "3", "4"], [])
    assert (near.frames[0].connected.recovered, far.frames[0].connected.recovered) == (True, False)


def test_heads_read_ahead_of_the_core_make_no_duplicate() -> None:
    router = Router()
    client = router.open(ALICE)
    router.broadcast(ALICE, "1")
    router.write()
    router.read_log()
    router.return_reads()
    router.report_commit()
    assert client.frames[0].connected.positions[3].position.seq == 1
    assert client.texts == []


@pytest.mark.parametrize("after", [EMPTY, Position("e1", 1)])
def test_a_log_erased_while_it_is_read_recovers_nothing(after: Position) -> None:
    router = Router()
    publish(router, ALICE, "1", "2")
    client = router.open(ALICE, resume={ALICE: after})
    router.read_log()
    router.return_reads()
    router.read_log()
    router.reset(ALICE)
    router.return_reads()
    assert not client.frames[0].connected.recovered
    assert client.texts == []
    publish(router, ALICE, "new")
    assert client.texts == ["new"]


@pytest.mark.parametrize("reads_done", [0, 1, 2])
@pytest.mark.parametrize("gone", ["close", "break", "relink", "lease"])
def test_a_connection_closed_while_it_opens_leaves_no_trace(reads_done: int, gone: str) -> None:
    router = Router()
    publish(router, ALICE, "1", "2")
    client = router.open(ALICE, user="x", resume={ALICE: EMPTY})
    for _ in range(reads_done):
        router.read_log()
        if _ < reads_done - 1:
            router.return_reads()
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
    tenant = router.core.directory.tenants["t"]
    assert (tenant.connections_opened, tenant.connections_closed) == (0, 0)
    assert not router.connections_of("t")


def test_an_opening_that_fails_halfway_does_not_affect_others() -> None:
    router = Router()
    publish(router, ALICE, "1")
    there = router.connected(ALICE)
    client = router.open(ALICE, resume={ALICE: EMPTY})
    router.fail_read()
    assert client.close_reason == "ROUTER_UNAVAILABLE"
    check_tables(router.core, at_rest=True)
    publish(router, ALICE, "2")
    assert there.texts == ["2"]


def test_a_connection_whose_reads_fail_is_closed_and_leaves_no_trace() -> None:
    router = Router()
    client = router.open(ALICE)
    router.fail_read()
    assert client.close_reason == "ROUTER_UNAVAILABLE"
    assert not router.core.directory.topics
    assert not client.edge.link.connections  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("home", "reason"),
    [
        (("v", "a", "w", PERSON, "alice"), "UNKNOWN_TENANT"),
        (("t", "", "w", 0, ""), "INVALID_ADDRESS"),
        (("t", "a", "", 0, ""), "INVALID_ADDRESS"),
        (("t", "a", "w", PERSON, "a/b"), "INVALID_ADDRESS"),
    ],
)
def test_an_invalid_connect_request_is_closed(home: TopicKey, reason: str) -> None:
    router = Router()
    assert router.open(home).close_reason == reason
    assert not router.core.directory.topics


def test_a_group_is_joined_received_and_left() -> None:
    router = Router()
    publish(router, ROOM, "before")
    client, member = router.connected(ALICE), router.connected(ROOM)
    router.subscribe(client)
    router.run()
    subscribed = client.frames[-1].subscribed
    assert (subscribed.position.seq, subscribed.recovered) == (1, False)
    router.say(client, "from alice", ROOM)
    publish(router, ROOM, "during")
    router.unsubscribe(client)
    publish(router, ROOM, "after")
    assert client.texts == ["during"]
    assert member.texts == ["from alice", "during", "after"]
    check_tables(router.core, at_rest=True)


def test_a_subscription_resumes_from_its_position() -> None:
    router = Router()
    publish(router, ROOM, "1", "2", "3")
    client = router.connected(ALICE)
    router.subscribe(client, position={"epoch": "e1", "seq": 1})
    router.run()
    assert client.frames[1].subscribed.recovered
    assert client.texts == ["2", "3"]


def test_subscribing_twice_at_once_joins_once() -> None:
    router = Router()
    client = router.connected(ALICE)
    router.subscribe(client)
    router.subscribe(client)
    router.run()
    check_tables(router.core, at_rest=True)
    publish(router, ROOM, "1")
    assert client.texts == ["1"]
    router.unsubscribe(client)
    assert ROOM not in router.core.directory.topics


def test_the_limit_of_groups_holds_for_concurrent_subscriptions() -> None:
    router = Router()
    client = router.connected(ALICE)
    for number in range(5):
        router.subscribe(client, ("t", "a", "w", GROUP, f"g{number}"))
    router.run()
    assert client.kinds().count("subscribed") == 3
    assert [f.error.code for f in client.frames if f.HasField("error")] == ["TOO_MANY_TOPICS"] * 2
    router.unsubscribe(client, ("t", "a", "w", GROUP, "g0"))
    router.subscribe(client, ("t", "a", "w", GROUP, "g4"))
    router.run()
    assert client.kinds()[-1] == "subscribed"


def test_a_person_conversation_cannot_be_joined_nor_the_own_one_left() -> None:
    router = Router()
    client = router.connected(ALICE)
    router.subscribe(client, ("t", "a", "w", PERSON, "bob"))
    assert client.frames[-1].error.code == "CONVERSATION_FORBIDDEN"
    router.unsubscribe(client, ALICE)
    assert client.frames[-1].error.code == "INVALID_ARGUMENT"
    nowhere = router.connected(PLATFORM)
    router.say(nowhere, "x")
    assert nowhere.frames[-1].error.code == "INVALID_ARGUMENT"


def test_a_subscription_whose_read_fails_is_rejected_and_leaves_no_trace() -> None:
    router = Router()
    client = router.connected(ALICE)
    router.subscribe(client)
    router.fail_read()
    assert client.frames[-1].error.code == "LOG_UNAVAILABLE"
    assert ROOM not in router.core.directory.topics


@settings(max_examples=100, deadline=None)
@given(
    st.lists(
        st.sampled_from(["say", "write", "report_commit", "read_log", "return_reads", "reset"]), max_size=25
    )
)
def test_in_any_order_of_commits_and_reads_a_resumed_client_has_no_gap(steps: list[str]) -> None:
    router = Router()
    router.connected(ALICE, edge="e2")
    publish(router, ALICE, "1", "2")
    # The client itself checks every frame.
    client = router.open(ALICE, resume={ALICE: Position("e1", 1)})
    for step in steps:
        if step == "say":
            router.broadcast(ALICE, "more")
        elif step == "reset":
            router.reset(ALICE)
        else:
            getattr(router, step)()
    router.run()
    assert client.place[ALICE] == router.log.head(ALICE) or router.log.head(ALICE) == EMPTY
