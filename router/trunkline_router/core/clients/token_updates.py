"""Clients that show another token while they are connected, and groups that are left."""

from __future__ import annotations

from trunkline.v1 import catalogue
from trunkline.v1.catalogue import Refused
from trunkline.v1.edge_service_pb2 import ConnectionGranted

from trunkline_router.core.directory.client_outbox import ClientOutbox
from trunkline_router.core.directory.connections import ConnectedClient, Link, Topic
from trunkline_router.core.directory.directory import Directory
from trunkline_router.core.directory.presence import Presence
from trunkline_router.core.validation.validator import check
from trunkline_router.core.values.permissions import Permissions
from trunkline_router.core.values.topics import GROUP


class TokenUpdates:
    """Gives connections what their new tokens allow, and takes from them what these do not."""

    def __init__(self, directory: Directory, presence: Presence, answers: ClientOutbox) -> None:
        self._directory = directory
        self._presence = presence
        self._answers = answers

    def granted(self, link: Link, entry: ConnectionGranted) -> None:
        """A client has shown another token. What is refused is answered, and all stays as it was."""
        connection = link.connections.get(entry.connection)
        if connection is None:
            return
        try:
            check(entry)
            self._grant(connection, entry)
        except Refused as reason:
            self._answers.refuse(connection, entry.id, reason)

    def _grant(self, connection: ConnectedClient, entry: ConnectionGranted) -> None:
        tenant = connection.tenant
        allowed = Permissions.of(entry.grants)
        if tenant.revocations.revokes(connection.user, allowed):
            raise catalogue.TOKEN_REVOKED.refused()
        if allowed.may_hear != connection.may_hear:
            problem = "a token with another right to subscribe is for another connection"
            raise catalogue.FORBIDDEN.refused(problem=problem)
        connection.allowed = allowed
        authorized = self._answers.send(connection, 64).authorized
        authorized.id = entry.id
        if entry.grants.HasField("expires_at"):
            authorized.expires_at.CopyFrom(entry.grants.expires_at)
        for topic in [t for t in connection.topics if t.key[3] == GROUP and t.key != connection.home]:
            if not allowed.may_join(topic.key[4]):
                self.leave(connection, topic, "")

    def leave(self, connection: ConnectedClient, topic: Topic, frame_id: str) -> None:
        """The connection leaves a group, and is told so."""
        link_topic = topic.on(connection.link)
        leave = connection.link.outbox.add().leave
        leave.connection = connection.number
        if link_topic is not None:
            leave.topics.append(link_topic.number)
        unsubscribed = self._answers.send(connection, 128).unsubscribed
        unsubscribed.id = frame_id
        unsubscribed.address.CopyFrom(topic.address)
        self._presence.left(connection, topic.key)
        connection.topics.remove(topic)
        self._directory.part(connection, topic)
        self._directory.leave(topic)
