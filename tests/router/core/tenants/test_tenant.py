"""Tenants that are declared, changed, suspended and taken away, and what their clients' tokens allow."""

from __future__ import annotations

import pytest
from trunkline.v1.access_pb2 import (
    RIGHT_CANCEL,
    RIGHT_HISTORY,
    RIGHT_PUBLISH,
    RIGHT_SUBSCRIBE,
    Grants,
    Right,
)
from trunkline.v1.catalogue import Refused
from trunkline.v1.tenant_pb2 import (
    OPENNESS_ANYBODY,
    OPENNESS_LOOPBACK,
    TENANT_STATE_DELETING,
    TENANT_STATE_SUSPENDED,
    TenantLimits,
    TenantSettings,
)
from trunkline_router.core.values.stored_records import RevocationKind, StoredRevocation
from trunkline_router.core.values.topics import GROUP, TopicKey

from tests.router.core.harness.invariants import check_tables
from tests.router.core.harness.router import ALICE, ROOM, Router

OTHER: TopicKey = ("t", "a", "p", GROUP, "other")
ALL = (RIGHT_PUBLISH, RIGHT_SUBSCRIBE, RIGHT_HISTORY, RIGHT_CANCEL)


def limited(**limits: int) -> TenantSettings:
    return TenantSettings(open_to=OPENNESS_LOOPBACK, limits=TenantLimits(**limits))


def grants(*rights: Right.ValueType, groups: list[str] | None = None, **more: object) -> Grants:
    return Grants(rights=rights or ALL, all_groups=groups is None, groups=groups or [], **more)  # type: ignore[arg-type]


def issued(at_s: int, token_id: str = "") -> Grants:
    made = grants(token_id=token_id)
    made.issued_at.seconds = at_s
    return made


def reasons(router: Router, tenant: str = "t") -> dict[str, int]:
    return dict(router.core.directory.tenants[tenant].refused)


# What edges are told


def test_an_edge_is_told_all_policies_first_and_each_change_at_once() -> None:
    router = Router()
    edge = router.edge()
    assert (set(edge.policies), edge.knows_policies) == ({"t", "u"}, True)
    router.declare("new", TenantSettings(open_to=OPENNESS_ANYBODY, default_agent="helper"))
    assert edge.policies["new"].settings.default_agent == "helper"
    router.declare("new", TenantSettings(limits=TenantLimits(messages_per_s=7)))
    told = edge.policies["new"].settings
    assert (told.default_agent, told.limits.messages_per_s, told.limits.conversations) == ("", 7, 3)
    router.core.tenant_table.remove("new")
    router.carry()
    assert set(edge.policies) == {"t", "u"}


def test_an_edge_that_was_away_is_told_all_again() -> None:
    router = Router()
    edge = router.edge()
    router.break_link()
    router.declare("new")
    edge.knows_policies = False
    router.link("e1")
    assert (set(edge.policies), edge.knows_policies) == ({"t", "u", "new"}, True)


# Taking no part


@pytest.mark.parametrize(
    ("state", "reason"),
    [(TENANT_STATE_SUSPENDED, "TENANT_SUSPENDED"), (TENANT_STATE_DELETING, "UNKNOWN_TENANT")],
)
def test_clients_of_a_tenant_that_takes_no_part_are_closed_and_no_others(state: int, reason: str) -> None:
    router = Router()
    ours, on_its_way = router.connected(ROOM), router.open(ROOM, resume={})
    theirs = router.connected(("u", "a", "p", GROUP, "room"))
    router.declare("t", state=state)  # type: ignore[arg-type]
    router.settle()
    assert (ours.close_reason, on_its_way.close_reason, theirs.state) == (reason, reason, "open")
    late = router.open(ROOM)
    router.settle()
    assert late.close_reason == reason
    with pytest.raises(Refused) as refused:
        router.broadcast(ROOM)
    assert refused.value.entry.code == reason
    check_tables(router.core, at_rest=True)


def test_what_was_on_its_way_from_a_client_when_its_tenant_was_suspended_is_refused() -> None:
    router = Router()
    client = router.connected(ROOM)
    # Its edge has not been told yet.
    client.edge.inbox.entries.add().frame.connection = client.number
    client.edge.inbox.entries[-1].frame.frame.message.id = "m1"
    client.edge.inbox.entries[-1].frame.frame.message.parts.add().text.text = "late"
    router.core.tenant_table.put(
        next(each for each in router.tenants if each.tenant == "t")._replace(state=TENANT_STATE_SUSPENDED)
    )
    router.settle()
    assert router.log.logs == {}
    assert reasons(router)["TENANT_SUSPENDED"] == 1


def test_who_was_suspended_while_a_link_was_down_is_closed_when_it_is_back() -> None:
    router = Router()
    client = router.connected(ROOM)
    router.break_link()
    router.declare("t", state=TENANT_STATE_SUSPENDED)
    router.link("e1")
    router.settle()
    assert client.close_reason == "TENANT_SUSPENDED"
    router.declare("t")
    assert router.connected(ROOM).state == "open"


# Limits


def test_connections_of_a_tenant_are_limited_those_on_their_way_in_among_them() -> None:
    router = Router()
    router.declare("t", limited(connections=2))
    first = router.connected(ROOM)
    router.open(ROOM)
    third = router.open(ROOM)
    router.settle()
    assert third.close_reason == "TOO_MANY_CONNECTIONS"
    router.close(first)
    assert router.connected(ROOM).state == "open"
    assert reasons(router) == {"TOO_MANY_CONNECTIONS": 1}
    check_tables(router.core, at_rest=True)


def test_connections_of_a_user_are_limited_and_not_those_of_others() -> None:
    router = Router()
    router.declare("t", limited(connections_per_user=1))
    router.connected(ROOM, user="alice")
    again = router.open(ROOM, user="alice")
    router.settle()
    assert again.close_reason == "TOO_MANY_CONNECTIONS"
    for user in ("bob", "", ""):
        router.connected(ROOM, user=user)


def test_who_was_let_in_before_a_link_broke_is_not_counted_out() -> None:
    router = Router()
    router.declare("t", limited(connections=1))
    client = router.connected(ROOM)
    router.break_link()
    router.link("e1")
    router.settle()
    assert client.state == "open"
    assert router.core.directory.tenants["t"].connection_count == 1


def test_messages_of_a_tenant_are_limited_by_the_second() -> None:
    router = Router()
    router.declare("t", limited(messages_per_s=10))
    client, other = router.connected(ROOM), router.connected(("u", "a", "p", GROUP, "room"))
    for number in range(12):
        router.say(client, str(number))
    router.say(other, "unhindered")
    router.settle()
    assert client.kinds().count("ack") == 10
    error = client.last("error")
    assert (error.code, error.retryable, error.retry_after_ms) == ("RATE_LIMITED", True, 100)
    assert other.kinds()[-1] == "ack"
    router.now += 0.2
    router.say(client, "again")
    router.settle()
    assert client.kinds()[-1] == "ack"
    assert reasons(router) == {"RATE_LIMITED": 2}
    assert reasons(router, "u") == {}


def test_conversations_of_a_connection_and_open_messages_have_a_limit_of_the_tenants_own() -> None:
    router = Router()
    router.declare("t", limited(conversations=1, open_messages=1))
    client = router.connected(ROOM)
    router.subscribe(client, OTHER)
    router.subscribe(client, ("t", "a", "p", GROUP, "third"))
    router.settle()
    assert client.last("error").code == "TOO_MANY_TOPICS"
    router.core.open_messages.reserve("t")
    with pytest.raises(Refused) as refused:
        router.core.open_messages.reserve("t")
    assert refused.value.entry.code == "TOO_MANY_OPEN_MESSAGES"
    router.core.open_messages.reserve("u")


# Tokens


def test_without_a_token_a_client_must_be_where_its_tenant_is_open() -> None:
    router = Router()
    elsewhere = router.open(ROOM, remote_ip="192.0.2.1")
    assert elsewhere.close_reason == "UNAUTHORIZED"
    router.declare("t", TenantSettings())
    assert router.open(ROOM).close_reason == "UNAUTHORIZED"
    assert router.connected(ROOM, grants=grants(), remote_ip="192.0.2.1").state == "open"
    router.declare("t", TenantSettings(open_to=OPENNESS_ANYBODY))
    assert router.connected(ROOM, remote_ip="192.0.2.1").state == "open"


FRAMES = {
    "message": (RIGHT_PUBLISH, {"id": "1", "parts": [{"text": {"text": "x"}}]}),
    "signal": (RIGHT_PUBLISH, {"name": "typing"}),
    "edit": (RIGHT_PUBLISH, {"id": "1", "message_id": "m", "parts": [{"text": {"text": "x"}}]}),
    "recall": (RIGHT_PUBLISH, {"id": "1", "message_id": "m"}),
    "subscribe": (RIGHT_SUBSCRIBE, {"id": "1", "conversation": {"kind": 2, "id": "other"}}),
    "read": (RIGHT_SUBSCRIBE, {"position": {"epoch": "e1", "seq": 1}}),
    "delivered": (RIGHT_SUBSCRIBE, {"position": {"epoch": "e1", "seq": 1}}),
    "history": (RIGHT_HISTORY, {"id": "1"}),
    "cancel": (RIGHT_CANCEL, {"id": "1", "message_id": "m"}),
}


@pytest.mark.parametrize("kind", FRAMES)
def test_each_frame_needs_its_right_and_no_other(kind: str) -> None:
    needed, body = FRAMES[kind]
    for right in ALL:
        router = Router()
        client = router.connected(ROOM, user="alice", grants=grants(right))
        router.frame(client, **{kind: body})
        router.settle()
        told = [f.error.code for f in client.frames if f.HasField("error")]
        assert ("FORBIDDEN" in told) == (right != needed), (kind, right)


def test_who_may_not_subscribe_hears_nothing_and_may_still_speak() -> None:
    router = Router()
    sensor = router.connected(ROOM, user="s", grants=grants(RIGHT_PUBLISH))
    listener = router.connected(ROOM)
    router.say(listener, "not for all")
    ident = router.say(sensor, "21 degrees")
    router.settle()
    assert sensor.kinds() == ["connected", "ack"]
    assert sensor.last("ack").id == ident
    assert listener.texts == ["21 degrees"]
    router.say(sensor, "elsewhere", key=OTHER)
    router.settle()
    assert sensor.last("error").code == "NOT_SUBSCRIBED"
    router.break_link()
    router.link("e1")
    router.settle()
    assert sensor.state == "open"
    check_tables(router.core, at_rest=True)


def test_who_may_only_read_history_reads_that_of_its_own_conversation() -> None:
    router = Router()
    router.broadcast(ROOM, "before")
    router.settle()
    auditor = router.connected(ROOM, grants=grants(RIGHT_HISTORY))
    router.frame(auditor, history={"id": "h1"})
    router.frame(auditor, history={"id": "h2", "conversation": {"kind": GROUP, "id": "other"}})
    router.settle()
    assert [m.parts[0].text.text for m in auditor.last("history").messages] == ["before"]
    assert auditor.last("error").code == "NOT_SUBSCRIBED"


def test_only_groups_that_a_token_allows_are_joined() -> None:
    router = Router()
    client = router.connected(ROOM, grants=grants(groups=["other"]))
    router.subscribe(client, OTHER)
    router.subscribe(client, ("t", "a", "p", GROUP, "third"))
    router.settle()
    assert client.kinds()[-2:] == ["error", "subscribed"] or client.kinds()[-2:] == ["subscribed", "error"]
    assert client.last("error").code == "FORBIDDEN"


def test_another_token_counts_from_then_on_and_groups_that_it_does_not_allow_are_left() -> None:
    router = Router()
    client = router.connected(ROOM, grants=grants())
    router.subscribe(client, OTHER)
    router.settle()
    narrower = grants(RIGHT_SUBSCRIBE, groups=[])
    narrower.expires_at.seconds = 2_000_000_000
    router.grant(client, narrower)
    router.settle()
    assert client.last("authorized").expires_at.seconds == 2_000_000_000
    assert client.last("unsubscribed").address.conversation.id == "other"
    router.say(client, "no longer")
    router.settle()
    assert client.last("error").code == "FORBIDDEN"
    check_tables(router.core, at_rest=True)


def test_another_token_that_is_revoked_or_would_change_what_is_heard_is_refused() -> None:
    router = Router()
    client = router.connected(ROOM, grants=grants())
    router.core.tenant_table.revoke(StoredRevocation("t", RevocationKind.TOKEN_ID, "j1", 0, 1))
    for worse, code in ((grants(token_id="j1"), "TOKEN_REVOKED"), (grants(RIGHT_PUBLISH), "FORBIDDEN")):
        router.grant(client, worse)
        assert client.last("error").code == code
    router.say(client, "as before")
    router.settle()
    assert client.kinds()[-1] == "ack"


@pytest.mark.parametrize(
    ("revocation", "ended"),
    [
        ((RevocationKind.TOKEN_ID, "j1", 0), "alice old"),
        ((RevocationKind.USER, "alice", 2000), "alice old"),
        ((RevocationKind.USER, "alice", 9000), "alice old, alice new"),
        ((RevocationKind.ALL, "", 2000), "alice old, bob old"),
        ((RevocationKind.ALL, "", 9000), "alice old, alice new, bob old"),
        ((RevocationKind.USER, "carol", 9000), ""),
    ],
)
def test_a_revocation_ends_the_connections_that_it_is_about_and_no_others(
    revocation: tuple[RevocationKind, str, int], ended: str
) -> None:
    router = Router()
    clients = {
        "alice old": router.connected(ROOM, user="alice", grants=issued(1, "j1")),
        "alice new": router.connected(ROOM, user="alice", grants=issued(5, "j2")),
        "bob old": router.connected(ROOM, user="bob", grants=issued(1, "j3")),
        "alice open": router.connected(ROOM, user="alice"),
        "other tenant": router.connected(
            ("u", "a", "p", GROUP, "room"), user="alice", grants=issued(1, "j1")
        ),
    }
    stored = StoredRevocation("t", *revocation, 10_000)
    assert router.core.tenant_table.revoke(stored) == len([name for name in ended.split(", ") if name])
    router.settle()
    closed = [name for name, client in clients.items() if client.close_reason == "TOKEN_REVOKED"]
    assert ", ".join(closed) == ended
    for name, (user, token) in {
        "alice old": ("alice", issued(1, "j1")),
        "alice new": ("alice", issued(5, "j2")),
        "bob old": ("bob", issued(1, "j3")),
    }.items():
        again = router.open(ROOM, user=user, grants=token)
        router.settle()
        assert (again.close_reason == "TOKEN_REVOKED") == (name in closed)


def test_a_token_that_does_not_say_when_it_was_issued_is_older_than_any_revocation() -> None:
    router = Router()
    client = router.connected(ROOM, user="alice", grants=grants())
    router.core.tenant_table.revoke(StoredRevocation("t", RevocationKind.ALL, "", 1, 1))
    router.settle()
    assert client.close_reason == "TOKEN_REVOKED"


def test_what_was_revoked_while_a_link_was_down_is_found_out_when_it_is_back() -> None:
    router = Router()
    client = router.connected(ROOM, user="alice", grants=issued(1))
    router.break_link()
    router.core.tenant_table.revoke(StoredRevocation("t", RevocationKind.USER, "alice", 2000, 2000))
    router.link("e1")
    router.settle()
    assert client.close_reason == "TOKEN_REVOKED"


# Erasing


def test_what_waits_for_an_erased_tenant_is_refused_and_begins_no_new_log() -> None:
    router = Router()
    origin, theirs = router.broadcast(ALICE), router.broadcast(("u", "a", "p", GROUP, "room"))
    router.declare("t", state=TENANT_STATE_DELETING)
    router.core.tenant_erased("t", [ALICE])
    router.core.tenant_table.remove("t")
    router.settle()
    assert origin.reason is not None
    assert origin.reason.entry.code == "UNKNOWN_TENANT"
    assert theirs.reason is None
    assert {key[0] for key in router.log.logs} == {"u"}
    check_tables(router.core, at_rest=True)
