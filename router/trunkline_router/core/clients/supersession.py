"""Connections of protocols whose clients have one connection: the newest closes the one before."""

from __future__ import annotations

from trunkline.v1 import catalogue

from trunkline_router.core.directory.client_outbox import ClientOutbox
from trunkline_router.core.directory.connections import ConnectedClient
from trunkline_router.core.tenants.tenant import Tenant
from trunkline_router.core.values.topics import TopicKey

_Key = tuple[Tenant, TopicKey, str, str, str]


class Supersession:
    """Keeps the newest of the superseding connections of each address, user, protocol and holder.

    The holder of one user's token closes nobody else's connection.
    """

    def __init__(self, outbox: ClientOutbox) -> None:
        self._outbox = outbox
        self._newest: dict[_Key, ConnectedClient] = {}

    def opened(self, connection: ConnectedClient, *, restored: bool = False) -> None:
        """Close the connection whose place this one takes.

        A restored connection is closed itself if the other was opened later.
        """
        key = _key_of(connection)
        other = self._newest.get(key, connection)
        if restored and other.opened_ms > connection.opened_ms:
            connection, other = other, connection
        self._newest[key] = connection
        if other is not connection:
            self._outbox.close(other, catalogue.SUPERSEDED.refused())

    def closed(self, connection: ConnectedClient) -> None:
        """Forget a connection that is gone. Idempotent."""
        key = _key_of(connection)
        if self._newest.get(key) is connection:
            del self._newest[key]


def _key_of(connection: ConnectedClient) -> _Key:
    return connection.tenant, connection.home, connection.user, connection.protocol, connection.holder
