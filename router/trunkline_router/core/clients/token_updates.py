"""Tokens that clients renew while they are connected."""

from __future__ import annotations

from trunkline.v1 import catalogue
from trunkline.v1.catalogue import Refused
from trunkline.v1.edge_service_pb2 import ConnectionGranted

from trunkline_router.core.clients.groups import Groups
from trunkline_router.core.directory.client_outbox import ClientOutbox
from trunkline_router.core.directory.connections import ConnectedClient, Link
from trunkline_router.core.validation.validator import check
from trunkline_router.core.values.permissions import Permissions
from trunkline_router.core.values.topics import GROUP


class TokenUpdates:
    """Gives connections the permissions of their new tokens, and takes away the others."""

    def __init__(self, groups: Groups, outbox: ClientOutbox) -> None:
        self._groups = groups
        self._outbox = outbox

    def granted(self, link: Link, entry: ConnectionGranted) -> None:
        """The edge has verified another token. If it is rejected, the client keeps the old permissions."""
        connection = link.connections.get(entry.connection)
        if connection is None:
            return
        try:
            check(entry)
            self._grant(connection, entry)
        except Refused as reason:
            self._outbox.refuse(connection, entry.id, reason)

    def _grant(self, connection: ConnectedClient, entry: ConnectionGranted) -> None:
        permissions = Permissions.from_grants(entry.grants)
        if connection.tenant.revocations.revokes(connection.user, permissions):
            raise catalogue.TOKEN_REVOKED.refused()
        if permissions.may_subscribe != connection.may_subscribe:
            problem = "a token with another right to subscribe is for another connection"
            raise catalogue.FORBIDDEN.refused(problem=problem)
        connection.permissions = permissions
        authorized = self._outbox.send(connection, 64).authorized
        authorized.id = entry.id
        if entry.grants.HasField("expires_at"):
            authorized.expires_at.CopyFrom(entry.grants.expires_at)
        for topic in [t for t in connection.topics if t.key[3] == GROUP and t.key != connection.home]:
            if not permissions.may_join(topic.key[4]):
                self._groups.leave(connection, topic, "")
