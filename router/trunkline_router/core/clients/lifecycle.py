"""Clients on edges: connecting and going away."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from sys import intern

from trunkline.v1 import catalogue
from trunkline.v1.catalogue import Refused
from trunkline.v1.edge_service_pb2 import ConnectionOpened

from trunkline_router.core.clients.admission import admit
from trunkline_router.core.clients.link_recovery import LinkRecovery
from trunkline_router.core.clients.receipts import Receipts
from trunkline_router.core.clients.subscribing import SubscribeOperation
from trunkline_router.core.directory.client_outbox import ClientOutbox
from trunkline_router.core.directory.connections import ConnectedClient, Link, Topic, topics_heard
from trunkline_router.core.directory.directory import Directory
from trunkline_router.core.directory.presence import Presence
from trunkline_router.core.validation.validator import check
from trunkline_router.core.values.permissions import Permissions
from trunkline_router.core.values.topics import Position, TopicKey, address_of, position_of, topic_of


class ClientLifecycle:
    """Lets clients in and forgets them."""

    def __init__(
        self,
        directory: Directory,
        presence: Presence,
        answers: ClientOutbox,
        receipts: Receipts,
        join: Callable[..., SubscribeOperation],
        relinking: LinkRecovery,
        peek: Callable[[TopicKey], Position | None],
        mail: set[Link],
    ) -> None:
        self._directory = directory
        self._presence = presence
        self._answers = answers
        self._receipts = receipts
        self._join = join
        self._relinking = relinking
        self._peek = peek
        self._mail = mail

    def opened(self, link: Link, entry: ConnectionOpened) -> None:
        """A client wants to connect, or is made known again on a new link."""
        number = entry.connection
        allowed = Permissions.of(entry.grants) if entry.HasField("grants") else None
        try:
            home = self._home_of(entry)
            tenant = admit(self._directory, entry, allowed)
        except Refused as reason:
            if known := self._directory.tenants.get(entry.address.tenant):
                known.refused[reason.entry.code] += 1
            self._answers.turn_away(link, number, reason)
            return
        connection = ConnectedClient(tenant, link, number, entry.connection_id, home, entry.user)
        connection.allowed = allowed
        tenant.count_connection(connection.user)
        connection.protocol = entry.protocol
        connection.echo = entry.echo
        connection.opened_ms = entry.opened_at.ToMilliseconds()
        link.connections[number] = connection
        keys = _topics_of(connection)
        if entry.restored:
            keys += [(*home[:3], group.kind, group.id) for group in entry.groups]
            self._relinking.restored(connection, self._entered(keys))
            self._presence.opened(connection)
            return
        wanted = {topic_of(e.address): position_of(e.position) for e in entry.resume.positions}
        unnamed = [key for key in keys if key not in wanted] if entry.resume.delivered else []
        failed = partial(self._answers.turn_away, link, number, catalogue.ROUTER_UNAVAILABLE.refused())
        come_in = partial(self._come_in, connection, wanted, failed)
        if unnamed:
            self._receipts.look_up(entry.user, unnamed, come_in, failed)
        else:
            come_in({})

    def _come_in(
        self,
        connection: ConnectedClient,
        named: dict[TopicKey, Position],
        failed: Callable[[], None],
        told: dict[TopicKey, Position],
    ) -> None:
        """It enters its topics, to go on from where it has named, and from where its user has told."""
        topics = self._entered(_topics_of(connection))
        answered = partial(self._connected, connection, topics)
        self._join(connection, topics, named | told, answered, failed, in_pages=bool(told)).begin()

    def _entered(self, keys: list[TopicKey]) -> list[Topic]:
        return [self._directory.enter(key, self._peek(key)) for key in keys]

    def _home_of(self, entry: ConnectionOpened) -> TopicKey:
        address = entry.address
        try:
            check(entry)
            for field in ("tenant", "agent", "platform"):
                if not getattr(address, field):
                    raise catalogue.INVALID_ARGUMENT.refused(field=field, problem="must be set")
            if address.WhichOneof("target") not in (None, "conversation"):
                problem = "a client connects to a conversation, or to none"
                raise catalogue.INVALID_ARGUMENT.refused(field="address", problem=problem)
            if entry.resume.delivered and not entry.user:
                problem = "must be set to go on after what was delivered"
                raise catalogue.INVALID_ARGUMENT.refused(field="user", problem=problem)
        except Refused as reason:
            raise catalogue.INVALID_ADDRESS.refused(problem=str(reason)) from None
        tenant, agent, platform, kind, ident = topic_of(address)
        # Thousands of connections share these, and each would keep a copy of its own.
        return (intern(tenant), intern(agent), intern(platform), kind, ident)

    def _connected(
        self, connection: ConnectedClient, topics: list[Topic], recovered: bool, starts: list[Position]
    ) -> None:
        connected = self._answers.send(connection, 512).connected
        connected.connection_id = connection.id
        connected.address.CopyFrom(address_of(connection.home))
        connected.user = connection.user
        connected.recovered = recovered
        connected.limits.conversations = connection.tenant.limits.conversations
        if connection.allowed is not None and connection.allowed.expires_ms:
            connected.expires_at.FromMilliseconds(connection.allowed.expires_ms)
        for topic, start in zip(topics, starts, strict=True):
            connected.positions.add(address=topic.address, position=start.to_proto())
        self._presence.opened(connection)

    def closed(self, link: Link, number: int) -> None:
        """A client is gone. Frames for it that are on their way are dropped by the edge."""
        connection = link.connections.pop(number, None)
        if connection is None:
            return
        connection.tenant.uncount_connection(connection.user)
        self._presence.closed(connection)
        for topic in connection.topics:
            self._directory.part(connection, topic)
            self._directory.leave(topic)
        self._mail.add(link)


def _topics_of(connection: ConnectedClient) -> list[TopicKey]:
    """What a connection hears by itself."""
    return topics_heard(connection.home, connection.user) if connection.may_hear else []
