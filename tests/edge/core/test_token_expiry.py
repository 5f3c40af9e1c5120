"""Expiry of tokens."""

from __future__ import annotations

from typing import NamedTuple

from trunkline.v1.edge_service_pb2 import ConnectionOpened
from trunkline_edge.core.connection import Connection
from trunkline_edge.core.token_expiry import TokenExpiries

from tests.edge.core.core_harness import JSON


class Token:
    """A verified token; tokens have no order."""

    key = "key"

    def __init__(self, expires_at_s: float | None) -> None:
        self.expires_at_s = expires_at_s


class Watched(NamedTuple):
    """Expiries and the connections that they watch."""

    connections: dict[int, Connection]
    expiries: TokenExpiries

    def present(self, connection: Connection, expires_at_s: float) -> None:
        """Replace the token of a connection."""
        connection.principal = Token(expires_at_s)
        self.expiries.add(connection)


def watched(count: int = 1) -> Watched:
    """Return expiries of this many connections without tokens."""
    connections = {n: Connection(ConnectionOpened(connection=n), JSON, 0) for n in range(1, count + 1)}
    return Watched(connections, TokenExpiries(connections))


def test_tokens_of_one_connection_may_expire_at_the_same_time() -> None:
    all_of = watched()
    [client] = all_of.connections.values()
    for _ in range(3):
        all_of.present(client, 100.0)
    assert all_of.expiries.take_expired(99.0) == []
    assert all_of.expiries.take_expired(100.0) == [client]


def test_stale_entries_are_bounded() -> None:
    all_of = watched(count=100)
    for round_ in range(50):
        for client in all_of.connections.values():
            all_of.present(client, 1000.0 - round_)
            assert len(all_of.expiries) <= 2 * 100 + 1000
    clients = list(all_of.connections.values())
    gone = all_of.connections.pop(1)
    assert all_of.expiries.take_expired(950.0) == []
    assert all_of.expiries.take_expired(951.0) == [one for one in clients if one is not gone]


def test_entries_of_connections_that_are_gone_are_bounded() -> None:
    all_of = watched(count=0)
    for number in range(1, 5000):
        client = all_of.connections[number] = Connection(ConnectionOpened(connection=number), JSON, 0)
        all_of.present(client, 1000.0)
        del all_of.connections[number]
    assert len(all_of.expiries) <= 1000
