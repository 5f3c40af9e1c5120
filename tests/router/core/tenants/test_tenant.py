"""Tenants that are created, changed, suspended and deleted, and the permissions of their clients."""

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
from trunkline.v1.frames import CLIENT_FRAMES
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


# Policies


def test_an_edge_receives_all_policies_first_and_each_change_at_once() -> None:
    router = Router()
    edge = router.edge()
    assert (set(edge.policies), edge.knows_policies) == ({"t", "u"}, True)
    router.declare("new", TenantSettings(open_to=OPENNESS_ANYBODY, default_agent="helper"))
    assert edge.policies["new"].settings.default_agent == "helper"
    router.declare("new", TenantSettings(limits=TenantLimits(messages_per_s=7)))
    settings = edge.policies["new"].settings
    limits = settings.limits
    assert (settings.default_agent, limits.messages_per_s, limits.conversations) == ("", 7, 3)
    router.core.tenant_table.remove("new")
    router.carry()
    assert set(edge.policies) == {"t", "u"}


def test_an_edge_that_links_again_receives_all_policies_again() -> None:
    router = Router()
    edge = router.edge()
    router.break_link()
    router.declare("new")
    edge.knows_policies = False
    router.link("e1")
    assert (set(edge.policies), edge.knows_policies) == ({"t", "u", "new"}, True)


# Inactive tenants


@pytest.mark.parametrize(
    ("state", "reason"),
    [(TENANT_STATE_SUSPENDED, "TENANT_SUSPENDED"), (TENANT_STATE_DELETING, "UNKNOWN_TENANT")],
)
def test_only_clients_of_an_inactive_tenant_are_closed(state: int, reason: str) -> None:
    router = Router()
    ours, on_its_way = router.connected(ROOM), router.open(ROOM, resume={})
    theirs = router.connected(("u", "a", "p", GROUP, "room"))
    router.declare("t", state=state)  # type: ignore[arg-type]
    router.run()
    assert (ours.close_reason, on_its_way.close_reason, theirs.state) == (reason, reason, "open")
    late = router.open(ROOM)
    router.run()
    assert late.close_reason == reason
    with pytest.raises(Refused) as refused:
        router.broadcast(ROOM)
    assert refused.value.entry.code == reason
    check_tables(router.core, at_rest=True)


def test_a_frame_under_way_when_its_tenant_is_suspended_is_refused() -> None:
    router = Router()
    client = router.connected(ROOM)
    # Its edge does not know yet.
    client.edge.inbox.entries.add().frame.connection = client.number
    client.edge.inbox.entries[-1].frame.frame.message.id = "m1"
    client.edge.inbox.entries[-1].frame.frame.message.parts.add().text.text = "late"
    router.core.tenant_table.put(
        next(each for each in router.tenants if each.tenant == "t")._replace(state=TENANT_STATE_SUSPENDED)
    )
    router.run()
    assert router.log.logs == {}
    assert reasons(router)["TENANT_SUSPENDED"] == 1


def test_a_client_whose_tenant_was_suspended_while_its_link_was_down_is_closed() -> None:
    router = Router()
    client = router.connected(ROOM)
    router.break_link()
    router.declare("t", state=TENANT_STATE_SUSPENDED)
    router.link("e1")
    router.run()
    assert client.close_reason == "TENANT_SUSPENDED"
    router.declare("t")
    assert router.connected(ROOM).state == "open"


# Limits


def test_connections_of_a_tenant_are_limited_including_those_being_opened() -> None:
    router = Router()
    router.declare("t", limited(connections=2))
    first = router.connected(ROOM)
    router.open(ROOM)
    third = router.open(ROOM)
    router.run()
    assert third.close_reason == "TOO_MANY_CONNECTIONS"
    router.close(first)
    assert router.connected(ROOM).state == "open"
    assert reasons(router) == {"TOO_MANY_CONNECTIONS": 1}
    check_tables(router.core, at_rest=True)


def test_connections_of_one_user_are_limited() -> None:
    router = Router()
    router.declare("t", limited(connections_per_user=1))
    router.connected(ROOM, user="alice")
    again = router.open(ROOM, user="alice")
    router.run()
    assert again.close_reason == "TOO_MANY_CONNECTIONS"
    for user in ("bob", "", ""):
        router.connected(ROOM, user=user)


def test_restored_connections_are_exempt_from_the_limit() -> None:
    router = Router()
    router.declare("t", limited(connections=1))
    client = router.connected(ROOM)
    router.break_link()
    router.link("e1")
    router.run()
    assert client.state == "open"
    assert router.core.directory.tenants["t"].connection_count == 1


def test_messages_of_a_tenant_are_rate_limited() -> None:
    router = Router()
    router.declare("t", limited(messages_per_s=10))
    client, other = router.connected(ROOM), router.connected(("u", "a", "p", GROUP, "room"))
    for number in range(12):
        router.say(client, str(number))
    router.say(other, "unhindered")
    router.run()
    assert client.kinds().count("ack") == 10
    error = client.last("error")
    assert (error.code, error.retryable, error.retry_after_ms) == ("RATE_LIMITED", True, 100)
    assert other.kinds()[-1] == "ack"
    router.now += 0.2
    router.say(client, "again")
    router.run()
    assert client.kinds()[-1] == "ack"
    assert reasons(router) == {"RATE_LIMITED": 2}
    assert reasons(router, "u") == {}


def test_a_tenant_sets_its_limits_of_conversations_and_open_messages() -> None:
    router = Router()
    router.declare("t", limited(conversations=1, open_messages=1))
    client = router.connected(ROOM)
    router.subscribe(client, OTHER)
    router.subscribe(client, ("t", "a", "p", GROUP, "third"))
    router.run()
    assert client.last("error").code == "TOO_MANY_TOPICS"
    router.core.open_messages.reserve("t")
    with pytest.raises(Refused) as refused:
        router.core.open_messages.reserve("t")
    assert refused.value.entry.code == "TOO_MANY_OPEN_MESSAGES"
    router.core.open_messages.reserve("u")


# Tokens


def test_a_client_without_a_token_needs_an_open_tenant() -> None:
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


def test_all_frames_that_need_a_right_are_tested() -> None:
    assert {kind for kind, rule in CLIENT_FRAMES.items() if rule.right} == FRAMES.keys()


@pytest.mark.parametrize("kind", FRAMES)
def test_each_frame_needs_its_own_right_only(kind: str) -> None:
    needed, body = FRAMES[kind]
    for right in ALL:
        router = Router()
        client = router.connected(ROOM, user="alice", grants=grants(right))
        router.frame(client, **{kind: body})
        router.run()
        codes = [f.error.code for f in client.frames if f.HasField("error")]
        assert ("FORBIDDEN" in codes) == (right != needed), (kind, right)


def test_a_client_without_the_right_to_subscribe_may_still_publish() -> None:
    router = Router()
    sensor = router.connected(ROOM, user="s", grants=grants(RIGHT_PUBLISH))
    listener = router.connected(ROOM)
    router.say(listener, "not for all")
    ident = router.say(sensor, "21 degrees")
    router.run()
    assert sensor.kinds() == ["connected", "ack"]
    assert sensor.last("ack").id == ident
    assert listener.texts == ["21 degrees"]
    router.say(sensor, "elsewhere", key=OTHER)
    router.run()
    assert sensor.last("error").code == "NOT_SUBSCRIBED"
    router.break_link()
    router.link("e1")
    router.run()
    assert sensor.state == "open"
    check_tables(router.core, at_rest=True)


def test_a_client_with_the_right_to_history_reads_its_own_conversation_only() -> None:
    router = Router()
    router.broadcast(ROOM, "before")
    router.run()
    auditor = router.connected(ROOM, grants=grants(RIGHT_HISTORY))
    router.frame(auditor, history={"id": "h1"})
    router.frame(auditor, history={"id": "h2", "conversation": {"kind": GROUP, "id": "other"}})
    router.run()
    assert [m.parts[0].text.text for m in auditor.last("history").messages] == ["before"]
    assert auditor.last("error").code == "NOT_SUBSCRIBED"


def test_a_client_joins_only_groups_that_its_token_allows() -> None:
    router = Router()
    client = router.connected(ROOM, grants=grants(groups=["other"]))
    router.subscribe(client, OTHER)
    router.subscribe(client, ("t", "a", "p", GROUP, "third"))
    router.run()
    assert client.kinds()[-2:] == ["error", "subscribed"] or client.kinds()[-2:] == ["subscribed", "error"]
    assert client.last("error").code == "FORBIDDEN"


def test_a_new_token_replaces_permissions_and_ends_subscriptions_that_it_does_not_allow() -> None:
    router = Router()
    client = router.connected(ROOM, grants=grants())
    router.subscribe(client, OTHER)
    router.run()
    narrower = grants(RIGHT_SUBSCRIBE, groups=[])
    narrower.expires_at.seconds = 2_000_000_000
    router.grant(client, narrower)
    router.run()
    assert client.last("authorized").expires_at.seconds == 2_000_000_000
    assert client.last("unsubscribed").address.conversation.id == "other"
    router.say(client, "no longer")
    router.run()
    assert client.last("error").code == "FORBIDDEN"
    check_tables(router.core, at_rest=True)


def test_a_new_token_that_is_revoked_or_changes_the_right_to_subscribe_is_refused() -> None:
    router = Router()
    client = router.connected(ROOM, grants=grants())
    router.core.tenant_table.revoke(StoredRevocation("t", RevocationKind.TOKEN_ID, "j1", 0, 1))
    for worse, code in ((grants(token_id="j1"), "TOKEN_REVOKED"), (grants(RIGHT_PUBLISH), "FORBIDDEN")):
        router.grant(client, worse)
        assert client.last("error").code == code
    router.say(client, "as before")
    router.run()
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
def test_a_revocation_closes_exactly_the_connections_that_it_affects(
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
    router.run()
    closed = [name for name, client in clients.items() if client.close_reason == "TOKEN_REVOKED"]
    assert ", ".join(closed) == ended
    for name, (user, token) in {
        "alice old": ("alice", issued(1, "j1")),
        "alice new": ("alice", issued(5, "j2")),
        "bob old": ("bob", issued(1, "j3")),
    }.items():
        again = router.open(ROOM, user=user, grants=token)
        router.run()
        assert (again.close_reason == "TOKEN_REVOKED") == (name in closed)


def test_a_token_without_an_issue_time_is_older_than_any_revocation() -> None:
    router = Router()
    client = router.connected(ROOM, user="alice", grants=grants())
    router.core.tenant_table.revoke(StoredRevocation("t", RevocationKind.ALL, "", 1, 1))
    router.run()
    assert client.close_reason == "TOKEN_REVOKED"


def test_a_token_revoked_while_its_link_was_down_is_rejected_on_restore() -> None:
    router = Router()
    client = router.connected(ROOM, user="alice", grants=issued(1))
    router.break_link()
    router.core.tenant_table.revoke(StoredRevocation("t", RevocationKind.USER, "alice", 2000, 2000))
    router.link("e1")
    router.run()
    assert client.close_reason == "TOKEN_REVOKED"


# Erasure


def test_entries_waiting_for_an_erased_tenant_are_refused_and_begin_no_new_log() -> None:
    router = Router()
    ours, theirs = router.broadcast(ALICE), router.broadcast(("u", "a", "p", GROUP, "room"))
    router.declare("t", state=TENANT_STATE_DELETING)
    router.core.tenant_erased("t", [ALICE])
    router.core.tenant_table.remove("t")
    router.run()
    assert ours.reason is not None
    assert ours.reason.entry.code == "UNKNOWN_TENANT"
    assert theirs.reason is None
    assert {key[0] for key in router.log.logs} == {"u"}
    check_tables(router.core, at_rest=True)
