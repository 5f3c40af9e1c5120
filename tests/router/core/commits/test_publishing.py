"""Publishing: messages are committed, acknowledged and delivered, or refused."""

from __future__ import annotations

from typing import Any

import pytest
from trunkline.v1 import catalogue
from trunkline.v1.address_pb2 import Address
from trunkline.v1.catalogue import Refused
from trunkline_router.core.values.topics import GROUP, PERSON, USER, TopicKey

from tests.router.core.harness.producers import COMPLETE, Producing
from tests.router.core.harness.router import ALICE, PLATFORM, ROOM, Router

BOB: TopicKey = ("t", "a", "w", PERSON, "bob")


def test_a_message_is_neither_acked_nor_delivered_before_its_commit_is_reported() -> None:
    router = Router()
    one, two = router.connected(ROOM), router.connected(ROOM)
    router.say(one, "hello")
    assert (one.kinds(), two.kinds()) == (["connected"], ["connected"])
    router.write()
    assert (one.kinds(), two.kinds()) == (["connected"], ["connected"])
    router.report_commit()
    assert (one.kinds(), two.kinds()) == (["connected", "ack"], ["connected", "message"])


def test_the_ack_comes_before_the_others_message_on_the_same_link() -> None:
    router = Router()
    one = router.connected(ROOM)
    two = router.connected(ROOM)
    router.say(one, "hello")
    link = one.edge.link
    assert link is not None
    router.write()
    router.core.committed(*router.written.popleft())
    batch = link.outbox.take()
    assert batch is not None
    assert [entry.WhichOneof("entry") for entry in batch.entries] == ["send", "publish"]
    assert batch.entries[0].send.connection == one.number
    assert getattr(batch.entries[1].publish, "except") == one.number
    assert two.number != one.number


@pytest.mark.parametrize("edge", ["e1", "e2"])
def test_a_message_reaches_the_users_other_connection_but_not_the_sender(edge: str) -> None:
    router = Router()
    one = router.connected(ALICE, user="x")
    two = router.connected(ALICE, user="x", edge=edge)
    router.say(one, "hello")
    router.run()
    assert (one.texts, two.texts) == ([], ["hello"])


def test_messages_of_one_topic_arrive_in_log_order() -> None:
    router = Router()
    one, two = router.connected(ROOM), router.connected(ROOM, edge="e2")
    listener = router.connected(ROOM)
    for number in range(10):
        router.say((one, two)[number % 2], str(number))
        if number % 3 == 0:
            router.write()
    router.run()
    assert listener.texts == [str(number) for number in range(10)]
    assert listener.place[ROOM].seq == 10


def test_a_repeated_id_gets_the_same_ack_and_creates_no_message() -> None:
    router = Router()
    one, two = router.connected(ROOM), router.connected(ROOM)
    router.say(one, "hello", ident="m")
    router.run()
    router.say(one, "hello", ident="m")
    router.run()
    first, again = (frame.ack for frame in one.frames[1:])
    assert first == again
    assert two.texts == ["hello"]


def test_a_repeated_id_with_other_content_is_refused() -> None:
    router = Router()
    one, two = router.connected(ROOM), router.connected(ROOM)
    router.say(one, "hello", ident="m")
    router.say(one, "other", ident="m")
    router.run()
    assert one.kinds() == ["connected", "ack", "error"]
    assert one.frames[-1].error.code == "IDEMPOTENCY_MISMATCH"
    assert one.frames[-1].error.id == "m"
    assert two.texts == ["hello"]


def test_a_failed_commit_is_answered_and_nothing_is_delivered() -> None:
    router = Router()
    one, two = router.connected(ROOM), router.connected(ROOM)
    router.say(one, "hello", ident="m")
    backend = router.broadcast(ROOM)
    router.fail()
    router.run()
    error = one.frames[-1].error
    assert (error.code, error.id, error.retryable) == ("LOG_UNAVAILABLE", "m", True)
    assert backend.reason is not None
    assert backend.reason.entry.code == "LOG_UNAVAILABLE"
    assert two.texts == []
    router.say(one, "hello", ident="m")
    router.run()
    assert two.texts == ["hello"]


ADDRESSES: list[tuple[TopicKey, str]] = [
    (("t", "", "", 0, ""), "abcdef"),
    (("t", "a", "", 0, ""), "abcde"),
    (("t", "a", "w", 0, ""), "abcd"),
    (("t", "a", "w", PERSON, "alice"), "ab"),
    (("t", "a", "w", GROUP, "room"), "c"),
    (("t", "a", "w", PERSON, "room"), ""),
    (("t", "", "", USER, "x"), "af"),
    (("u", "", "", 0, ""), "g"),
    (("u", "a", "w", PERSON, "alice"), "g"),
    (("u", "", "", USER, "x"), "g"),
]


@pytest.mark.parametrize(("key", "expected"), ADDRESSES)
@pytest.mark.parametrize("ephemeral", [False, True])
def test_a_broadcast_reaches_and_counts_exactly_the_connections_that_its_address_matches(
    key: TopicKey, expected: str, ephemeral: bool
) -> None:
    router = Router()
    homes = {
        "a": (ALICE, "x"),
        "b": (ALICE, ""),
        "c": (ROOM, "y"),
        "d": (PLATFORM, ""),
        "e": (("t", "a", "other", PERSON, "alice"), ""),
        "f": (("t", "b", "w", PERSON, "alice"), "x"),
        "g": (("u", "a", "w", PERSON, "alice"), "x"),
    }
    clients = {
        name: router.connected(home, user=user, edge="e1" if name in "ace" else "e2")
        for name, (home, user) in homes.items()
    }
    backend = router.broadcast(key, ephemeral=ephemeral)
    router.run()
    assert "".join(name for name, client in clients.items() if client.texts) == expected
    assert backend.response.connections == len(expected)
    assert backend.response.HasField("position") is not ephemeral
    assert router.log.head(key).seq == (0 if ephemeral else 1)


def test_a_message_to_one_connection_reaches_it_alone_and_is_not_logged() -> None:
    router = Router()
    one, two = router.connected(ALICE), router.connected(ALICE)
    backend = router.broadcast(Address(tenant="t", connection=one.id))
    assert (one.texts, two.texts) == (["hello"], [])
    assert backend.response.connections == 1
    assert not router.log.logs


@pytest.mark.parametrize(
    "address", [Address(tenant="t", connection="nobody"), Address(tenant="u", connection="e1-c1")]
)
def test_a_message_to_an_unknown_connection_is_refused(address: Address) -> None:
    router = Router()
    client = router.connected(ALICE)
    assert client.id == "e1-c1"
    with pytest.raises(Refused) as refused:
        router.broadcast(address)
    assert refused.value.entry.code == "NO_ACTIVE_CONNECTION"
    assert client.texts == []


def test_a_message_to_a_connection_on_a_lost_link_is_refused() -> None:
    router = Router()
    client = router.connected(ALICE)
    router.break_link()
    with pytest.raises(Refused) as refused:
        router.broadcast(Address(tenant="t", connection=client.id))
    assert refused.value.entry.code == "NO_ACTIVE_CONNECTION"
    assert router.broadcast(ALICE, ephemeral=True).response.connections == 0


@pytest.mark.parametrize("ephemeral", [False, True])
def test_nothing_is_logged_if_a_required_connection_is_missing(ephemeral: bool) -> None:
    router = Router()
    router.connected(ALICE)
    with pytest.raises(Refused, match="No active connections for agent a on platform w in person bob"):
        router.broadcast(BOB, require_connection=True, ephemeral=ephemeral)
    router.run()
    assert BOB not in router.log.logs
    assert router.broadcast(ALICE, require_connection=True).reason is None


def test_a_retry_gets_the_first_answer_even_if_no_connection_is_left() -> None:
    router = Router()
    client = router.connected(ALICE)
    first = router.broadcast(ALICE, require_connection=True, idempotency_key="k")
    router.run()
    assert first.response.connections == 1
    router.close(client)
    again = router.broadcast(ALICE, require_connection=True, idempotency_key="k")
    other = router.broadcast(ALICE, require_connection=True, idempotency_key="new")
    router.run()
    assert again.response == first.response
    assert other.reason is not None
    assert other.reason.entry is catalogue.NO_ACTIVE_CONNECTION
    assert router.log.head(ALICE).seq == 1


def test_a_message_that_requires_no_connection_is_logged() -> None:
    router = Router()
    backend = router.broadcast(BOB)
    router.run()
    assert backend.response.connections == 0
    assert router.log.head(BOB).seq == 1


@pytest.mark.parametrize("more", [{"ephemeral": True}, {"to_connection": True}])
def test_an_idempotency_key_is_refused_if_the_message_is_not_logged(more: dict[str, Any]) -> None:
    router = Router()
    client = router.connected(ALICE)
    to = Address(tenant="t", connection=client.id) if more.pop("to_connection", False) else ALICE
    with pytest.raises(Refused, match="idempotency_key: must be empty"):
        router.broadcast(to, idempotency_key="k", **more)
    assert client.texts == []


def test_a_backends_retry_gets_the_first_answer() -> None:
    router = Router()
    client = router.connected(ALICE)
    first = router.broadcast(ALICE, idempotency_key="k")
    router.run()
    router.close(client)
    again = router.broadcast(ALICE, idempotency_key="k")
    other = router.broadcast(ALICE, "other", idempotency_key="k")
    router.run()
    assert again.response == first.response
    assert first.response.connections == 1
    assert other.reason is not None
    assert other.reason.entry.code == "IDEMPOTENCY_MISMATCH"


def test_an_unknown_tenant_is_refused() -> None:
    with pytest.raises(Refused, match="Tenant v does not exist"):
        Router().broadcast(("v", "", "", 0, ""))


def test_tenants_with_equal_ids_share_nothing() -> None:
    router = Router()
    foreign: TopicKey = ("u", *ALICE[1:])
    ours, theirs = router.connected(ALICE, user="x"), router.connected(foreign, user="x")
    router.say(ours, "ours", ident="m")
    router.say(theirs, "theirs", ident="m")
    one = router.broadcast(ALICE, "b1", idempotency_key="k")
    two = router.broadcast(foreign, "b2", idempotency_key="k")
    router.run()
    assert (ours.texts, theirs.texts) == (["b1"], ["b2"])
    assert one.response.connections == two.response.connections == 1
    assert "error" not in ours.kinds() + theirs.kinds()
    tenants = router.core.directory.tenants
    assert [tenants[name].messages_committed for name in "tu"] == [2, 2]
    router.reset(foreign)
    router.close(theirs)
    assert router.log.head(ALICE).seq == 2
    assert [len(router.connections_of(name)) for name in "tu"] == [1, 0]
    assert [tenants[name].connections_closed for name in "tu"] == [0, 1]


def test_a_signal_reaches_the_others_with_its_user_and_is_not_logged() -> None:
    router = Router()
    one, two = router.connected(ROOM, user="x"), router.connected(ROOM)
    router.frame(one, signal={"name": "typing", "user": "forged"})
    assert two.frames[1].signal.user == "x"
    assert two.frames[1].signal.conversation.id == "room"
    assert "signal" not in one.kinds()
    assert router.log.head(ROOM).seq == 0


@pytest.mark.parametrize("position", [{"epoch": "e1", "seq": 5}, {"epoch": "e9", "seq": 0}])
def test_a_read_of_an_unknown_position_is_refused(position: dict[str, object]) -> None:
    router = Router()
    one, two = router.connected(ROOM, user="x"), router.connected(ROOM)
    router.say(two, "hello")
    router.run()
    router.frame(one, read={"position": position})
    assert one.frames[-1].error.code == "CURSOR_MISMATCH"
    assert "read" not in two.kinds()


def test_history_pages_hold_the_requested_messages() -> None:
    router = Router()
    one = router.connected(ROOM)
    for number in range(1, 6):
        router.broadcast(ROOM, str(number))
    router.run()

    def page(**asked: object) -> tuple[list[str], bool]:
        router.frame(one, history=asked)
        router.run()
        history = one.frames[-1].history
        return [message.parts[0].text.text for message in history.messages], history.more

    assert page(limit=2) == (["4", "5"], True)
    assert page() == (["1", "2", "3", "4", "5"], False)
    assert page(before={"epoch": "e1", "seq": 3}) == (["1", "2"], False)
    assert page(after={"epoch": "e1", "seq": 1}, limit=3) == (["2", "3", "4"], True)
    router.frame(one, history={"after": {"epoch": "e0", "seq": 1}})
    router.run()
    assert one.frames[-1].error.code == "CURSOR_MISMATCH"
    router.frame(one, history={})
    router.fail_read()
    assert one.frames[-1].error.code == "LOG_UNAVAILABLE"


@pytest.mark.parametrize("kind", ["message", "history", "signal", "read", "unsubscribe"])
def test_frames_for_a_conversation_that_is_not_subscribed_are_refused(kind: str) -> None:
    router = Router()
    one = router.connected(ALICE)
    more: Any = {
        "message": {"parts": [{"text": {"text": "x"}}]},
        "signal": {"name": "typing"},
        "read": {"position": {}},
    }.get(kind, {})
    router.frame(one, **{kind: {"conversation": {"kind": 2, "id": "room"}, **more}})
    router.run()
    assert one.frames[-1].error.code == "NOT_SUBSCRIBED"
    assert not router.log.logs


def test_a_message_that_ends_while_history_is_read_is_not_returned_as_open() -> None:
    router = Router()
    client = router.connected(ALICE)
    backend = Producing(router, ALICE)
    router.run()
    backend.add(0, "text")
    router.frame(client, history={})
    router.read_log()
    backend.end()
    router.write()
    router.report_commit()
    router.return_reads()
    router.run()
    (message,) = client.last("history").messages
    assert (message.state, message.parts[0].text.text) == (COMPLETE, "text")
