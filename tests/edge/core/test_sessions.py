"""Sessions: capacity, draining, and ends of tokens."""

from __future__ import annotations

from typing import NamedTuple

import pytest
from trunkline.v1.catalogue import Refused
from trunkline.v1.edge_service_pb2 import ConnectionOpened
from trunkline_edge.core.connection import Connection, ConnectionState
from trunkline_edge.core.edge import EdgeCore

from tests.edge.core.core_harness import (
    JSON,
    connected,
    deliver,
    group,
    heard,
    linked_core,
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
