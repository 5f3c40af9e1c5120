"""Sessions: capacity, draining, and ends of tokens."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import pytest
from trunkline.v1 import catalogue
from trunkline.v1.catalogue import Refused
from trunkline.v1.edge_service_pb2 import ConnectionOpened
from trunkline_edge.core.connection import Connection, ConnectionState
from trunkline_edge.core.edge import EdgeCore

from tests.edge.core.core_harness import (
    JSON,
    close,
    connected,
    deliver,
    forwarded,
    group,
    heard,
    linked_core,
    open_all,
    opened,
    pinged,
)


class Token(NamedTuple):
    """A verified token."""

    key: str
    expires_at_s: float | None = None


def with_token(core: EdgeCore, token: Token, tenant: str = "t") -> Connection:
    """Open a connection that the router has accepted."""
    wanted = ConnectionOpened(address=group("team"))
    wanted.address.tenant = tenant
    client = core.sessions.open(JSON, wanted, 0, principal=token)
    deliver(core, connected(client))
    client.pending.clear()
    return client


def test_no_more_connections_are_opened_than_the_limit() -> None:
    core = linked_core(max_connections=2)
    first, _ = opened(core), opened(core)
    with pytest.raises(Refused) as refused:
        opened(core)
    assert refused.value.entry.code == "OVERLOADED"
    core.gone(first)
    assert opened(core).number == 3


def test_an_edge_that_stops_opens_no_connection() -> None:
    core = linked_core()
    core.sessions.is_draining = True
    with pytest.raises(Refused) as refused:
        core.sessions.check_capacity()
    assert refused.value.entry.code == "RESTARTING"


def test_a_connection_is_closed_when_its_token_expires() -> None:
    core = linked_core()
    expiring, lasting = with_token(core, Token("k", 100.0)), with_token(core, Token("k"))
    core.tick(0, wall_s=99.9)
    assert expiring.state is ConnectionState.OPEN
    core.tick(0, wall_s=100.0)
    assert heard(expiring) == ["closing TOKEN_EXPIRED"]
    assert lasting.state is ConnectionState.OPEN


def test_a_token_that_was_replaced_does_not_end_the_connection() -> None:
    core = linked_core()
    client = with_token(core, Token("k", 100.0))
    client.principal = Token("k", 200.0)
    core.sessions.expiries.add(client)
    core.tick(0, wall_s=150.0)
    assert client.state is ConnectionState.OPEN
    core.tick(0, wall_s=200.0)
    assert client.state is ConnectionState.CLOSING


def test_a_revoked_key_closes_the_connections_of_its_tenant_that_it_verified() -> None:
    core = linked_core()
    revoked, kept = with_token(core, Token("old")), with_token(core, Token("new"))
    other = with_token(core, Token("old"), tenant="other")
    core.sessions.close_revoked("t", frozenset())
    core.sessions.close_revoked("t", frozenset({"old"}))
    assert heard(revoked) == ["closing TOKEN_REVOKED"]
    assert (kept.state, other.state) == (ConnectionState.OPEN, ConnectionState.OPEN)


def _lose_heartbeats(core: EdgeCore, client: Connection) -> None:
    for _ in range(3):
        core.sessions.heartbeat([client])


CLOSES: dict[str, Callable[[EdgeCore, Connection], None]] = {
    "HEARTBEAT_LOST": _lose_heartbeats,
    "SLOW_CONSUMER": lambda core, client: core.backpressure.close_slow(client),
    "TOKEN_EXPIRED": lambda core, client: core.tick(0, wall_s=100.0),
    "TOKEN_REVOKED": lambda core, client: core.sessions.close_revoked("t", frozenset({"k"})),
    "CLOSED_BY_BACKEND": lambda core, client: deliver(core, close(client)),
    "RESTARTING": lambda core, client: core.sessions.close(client, catalogue.RESTARTING.refused()),
    "DISCONNECTED": lambda core, client: core.client_frames.received(client, b'{"type":"disconnect"}'),
}


@pytest.mark.parametrize("reason", CLOSES)
def test_the_router_learns_of_a_close_before_the_peer_answers_it(reason: str) -> None:
    core = linked_core()
    client = with_token(core, Token("k", 100.0))
    forwarded(core)
    CLOSES[reason](core, client)
    assert heard(client)[-1] == f"closing {reason}"
    assert forwarded(core) == [f"closed {client.number}"]
    core.gone(client)
    assert forwarded(core) == [], "reported twice"


def test_a_rejected_handshake_is_reported_at_once() -> None:
    core = linked_core()
    client = opened(core)
    core.sessions.close(client, catalogue.HANDSHAKE_TIMEOUT.refused(limit_s="10"))
    assert forwarded(core) == ["opened 1", "closed 1"]


def test_a_connection_closed_without_a_link_is_not_declared_on_the_next() -> None:
    core = linked_core()
    client, other = open_all(core)
    core.link_lost()
    core.sessions.close(client, catalogue.TOKEN_REVOKED.refused())
    core.linked()
    core.gone(client)
    assert forwarded(core) == ["topic team@0", f"opened {other.number} restored"]


def test_each_connection_is_pinged_once_in_an_interval() -> None:
    core = linked_core(heartbeat_s=5)
    clients = [with_token(core, Token("k")) for _ in range(7)]
    rounds = []
    for _ in range(5):
        core.tick(0, wall_s=0)
        rounds.append(pinged(core))
    assert sorted([one.number for each in rounds for one in each]) == [one.number for one in clients]
    assert max(map(len, rounds)) == 2
    core.gone(clients[0])
    assert len(core.sessions.heartbeats) == 6
