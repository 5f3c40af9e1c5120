"""Token refresh of connected clients."""

from __future__ import annotations

import json
from typing import NamedTuple

from trunkline.v1 import catalogue
from trunkline.v1.access_pb2 import RIGHT_PUBLISH, Grants
from trunkline.v1.edge_service_pb2 import ConnectionGranted, ConnectionOpened, EdgeEntry, RouterEntry
from trunkline_edge.core.connection import Connection
from trunkline_edge.core.edge import EdgeCore
from trunkline_edge.core.effects import VerifyToken

from tests.edge.core.core_harness import (
    JSON,
    connected,
    deliver,
    group,
    heard,
    join,
    linked_core,
    send,
    taken,
    topic,
)


class Token(NamedTuple):
    """A verified token."""

    key: str
    expires_at_s: float | None = None


OLD, NEW = Token("old"), Token("new", 100.0)
GRANTS = Grants(rights=[RIGHT_PUBLISH], token_id="new")


def shown(core: EdgeCore, bearer: Token | None = OLD) -> Connection:
    wish = ConnectionOpened(address=group("team"), grants=Grants(token_id="old"))
    client = core.sessions.open(JSON, wish, 0, principal=bearer)
    deliver(core, topic(1, "team"), connected(client), join(client, 1))
    client.pending.clear()
    taken(core.uplink)
    return client


def auth(ident: str = "a1") -> bytes:
    return json.dumps({"type": "auth", "id": ident, "token": "x.y.z"}).encode()


def to_verify(core: EdgeCore) -> list[VerifyToken]:
    return [one for one in core.effects if isinstance(one, VerifyToken)]


def entries(core: EdgeCore) -> list[EdgeEntry]:
    return [entry for one in taken(core.uplink) for entry in one.entries]


def grants_sent(core: EdgeCore) -> list[ConnectionGranted]:
    return [entry.granted for entry in entries(core) if entry.HasField("granted")]


def answer(client: Connection, kind: str, ident: str = "a1") -> RouterEntry:
    entry = send(client)
    getattr(entry.send.frame, kind).id = ident
    return entry


def test_another_token_is_verified_told_to_the_router_and_counts_when_that_agrees() -> None:
    core = linked_core()
    client = shown(core)
    core.client_frames.received(client, auth())
    [asked] = to_verify(core)
    assert (asked.connection, asked.frame.id, asked.frame.token) == (client, "a1", "x.y.z")
    # The token itself stays here.
    assert entries(core) == []
    core.token_refresh.verified(client, NEW, GRANTS, "a1")
    assert grants_sent(core) == [ConnectionGranted(connection=1, grants=GRANTS, id="a1")]
    assert client.principal is OLD
    deliver(core, answer(client, "authorized"))
    assert heard(client) == ["authorized a1"]
    assert client.principal is NEW
    assert core.sessions.expiries.take_expired(99.0) == []
    assert core.sessions.expiries.take_expired(100.0) == [client]
    core.link_lost()
    core.linked()
    [restored] = [entry.opened for entry in entries(core) if entry.HasField("opened")]
    assert restored.grants == GRANTS


def test_what_the_router_refuses_changes_nothing() -> None:
    core = linked_core()
    client = shown(core)
    core.client_frames.received(client, auth())
    core.token_refresh.verified(client, NEW, GRANTS, "a1")
    deliver(core, answer(client, "error", "another frame"))
    assert client.pending_token is not None
    deliver(core, answer(client, "error"))
    assert (client.principal, client.pending_token) == (OLD, None)
    core.client_frames.received(client, auth("a2"))
    assert len(to_verify(core)) == 2


def test_what_was_not_answered_when_the_link_broke_is_told_again() -> None:
    core = linked_core()
    client = shown(core)
    core.token_refresh.verified(client, NEW, GRANTS, "a1")
    core.link_lost()
    core.linked()
    assert [granted.id for granted in grants_sent(core)] == ["a1"]
    core.link_lost()
    core.token_refresh.verified(client, NEW, GRANTS, "a2")
    core.linked()
    assert [granted.id for granted in grants_sent(core)] == ["a2"]


def test_one_token_at_a_time_is_looked_at() -> None:
    core = linked_core()
    client = shown(core)
    core.token_refresh.verified(client, NEW, GRANTS, "a1")
    core.client_frames.received(client, auth("a2"))
    assert heard(client) == ["error UNEXPECTED_FRAME"]
    assert to_verify(core) == []


def test_a_token_is_rejected_while_another_is_being_verified() -> None:
    core = linked_core()
    client = shown(core)
    core.client_frames.received(client, auth("a1"))
    core.client_frames.received(client, auth("a2"))
    assert heard(client) == ["error UNEXPECTED_FRAME"]
    assert [effect.frame.id for effect in to_verify(core)] == ["a1"]
    core.token_refresh.invalid(client, catalogue.UNAUTHORIZED.refused(problem="expired"), "a1")
    assert heard(client) == ["error UNAUTHORIZED"]
    core.client_frames.received(client, auth("a3"))
    assert [effect.frame.id for effect in to_verify(core)] == ["a1", "a3"]
    core.token_refresh.verified(client, NEW, GRANTS, "a3")
    deliver(core, answer(client, "authorized", "a3"))
    core.client_frames.received(client, auth("a4"))
    assert [effect.frame.id for effect in to_verify(core)] == ["a1", "a3", "a4"]


def test_who_came_without_a_token_shows_none_later() -> None:
    core = linked_core()
    client = shown(core, bearer=None)
    core.client_frames.received(client, auth())
    assert heard(client) == ["error UNEXPECTED_FRAME"]


def test_a_token_that_was_verified_too_late_is_nobodys() -> None:
    core = linked_core()
    client = shown(core)
    core.backpressure.close_slow(client)
    taken(core.uplink)
    core.token_refresh.verified(client, NEW, GRANTS, "a1")
    assert entries(core) == []
