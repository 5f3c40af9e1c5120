"""Lifecycle of connections: opened, resumed, restored and closed."""

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
from trunkline_router.core.clients.signals import Signals
from trunkline_router.core.clients.subscribing import Subscriptions
from trunkline_router.core.clients.supersession import Supersession
from trunkline_router.core.commits.effects import Effects
from trunkline_router.core.directory.client_outbox import ClientOutbox
from trunkline_router.core.directory.connections import ConnectedClient, Link, Topic, default_topics
from trunkline_router.core.directory.directory import Directory
from trunkline_router.core.directory.presence import Presence
from trunkline_router.core.tenants.tenant import Tenant
from trunkline_router.core.validation.validator import check
from trunkline_router.core.values.permissions import Permissions
from trunkline_router.core.values.topics import Position, TopicKey, address_of, position_of, topic_of


class ClientLifecycle:
    """Admits clients and removes those that are gone."""

    def __init__(
        self,
        directory: Directory,
        presence: Presence,
        outbox: ClientOutbox,
        receipts: Receipts,
        signals: Signals,
        subscriptions: Subscriptions,
        link_recovery: LinkRecovery,
        effects: Effects,
        peek: Callable[[TopicKey], Position | None],
    ) -> None:
        self._directory = directory
        self._presence = presence
        self._outbox = outbox
        self._receipts = receipts
        self._signals = signals
        self._subscriptions = subscriptions
        self._link_recovery = link_recovery
        self._effects = effects
        self._peek = peek
        self._supersession = Supersession(outbox)

    def opened(self, link: Link, entry: ConnectionOpened) -> None:
        """A client connects, or is restored on a new link."""
        permissions = Permissions.from_grants(entry.grants) if entry.HasField("grants") else None
        try:
            home = _home_of(entry)
            tenant = admit(self._directory, entry, permissions)
        except Refused as reason:
            if known := self._directory.tenants.get(entry.address.tenant):
                known.refused[reason.entry.code] += 1
            self._outbox.reject(link, entry.connection, reason)
            return
        connection = self._connection(tenant, link, entry, home, permissions)
        keys = default_topics(home, entry.user) if connection.may_subscribe else []
        if entry.restored:
            keys += [(*home[:3], group.kind, group.id) for group in entry.groups]
            self._link_recovery.restored(connection, self._enter(keys))
            self._accepted(connection, restored=True)
        else:
            self._resume(connection, entry, keys)

    def _connection(
        self,
        tenant: Tenant,
        link: Link,
        entry: ConnectionOpened,
        home: TopicKey,
        permissions: Permissions | None,
    ) -> ConnectedClient:
        connection = ConnectedClient(tenant, link, entry.connection, entry.connection_id, home, entry.user)
        connection.permissions = permissions
        connection.protocol = entry.protocol
        connection.echo = entry.echo
        connection.supersedes, connection.holder = entry.supersedes, entry.holder
        connection.opened_ms = entry.opened_at.ToMilliseconds()
        tenant.count_connection(connection.user)
        link.connections[entry.connection] = connection
        return connection

    def _resume(self, connection: ConnectedClient, entry: ConnectionOpened, keys: list[TopicKey]) -> None:
        """Subscribe the connection from the positions that it named.

        With `resume.delivered` it resumes its other topics where its user's receipts are.
        """
        wanted = {topic_of(e.address): position_of(e.position) for e in entry.resume.positions}
        unnamed = [key for key in keys if key not in wanted] if entry.resume.delivered else []
        reason = catalogue.ROUTER_UNAVAILABLE.refused()
        failed = partial(self._outbox.reject, connection.link, connection.number, reason)
        subscribe = partial(self._subscribe, connection, keys, wanted, failed)
        if unnamed:
            self._receipts.look_up(entry.user, unnamed, subscribe, failed)
        else:
            subscribe({})

    def _subscribe(
        self,
        connection: ConnectedClient,
        keys: list[TopicKey],
        named: dict[TopicKey, Position],
        failed: Callable[[], None],
        receipts: dict[TopicKey, Position],
    ) -> None:
        topics = self._enter(keys)
        answered = partial(self._connected, connection, topics)
        self._subscriptions.subscribe(
            connection, topics, named | receipts, answered, failed, in_pages=bool(receipts)
        )

    def _enter(self, keys: list[TopicKey]) -> list[Topic]:
        return [self._directory.acquire_topic(key, self._peek(key)) for key in keys]

    def _connected(
        self, connection: ConnectedClient, topics: list[Topic], recovered: bool, starts: list[Position]
    ) -> None:
        connected = self._outbox.send(connection, 512).connected
        connected.connection_id = connection.id
        connected.address.CopyFrom(address_of(connection.home))
        connected.user = connection.user
        connected.recovered = recovered
        connected.limits.conversations = connection.tenant.limits.conversations
        if connection.permissions is not None and connection.permissions.expires_ms:
            connected.expires_at.FromMilliseconds(connection.permissions.expires_ms)
        for topic, start in zip(topics, starts, strict=True):
            connected.positions.add(address=topic.address, position=start.to_proto())
        self._accepted(connection)

    def _accepted(self, connection: ConnectedClient, *, restored: bool = False) -> None:
        self._presence.opened(connection)
        if connection.supersedes:
            self._supersession.opened(connection, restored=restored)

    def closed(self, link: Link, number: int) -> None:
        """A client is gone. The edge drops frames to it that are still on their way."""
        connection = link.connections.pop(number, None)
        if connection is None:
            return
        connection.tenant.uncount_connection(connection.user)
        if connection.supersedes:
            self._supersession.closed(connection)
        self._presence.closed(connection)
        self._signals.left(connection)
        for topic in connection.topics:
            self._directory.unsubscribe(connection, topic)
            self._directory.release_topic(topic)
        self._effects.writable_peers.add(link)


def _home_of(entry: ConnectionOpened) -> TopicKey:
    """Return the conversation or platform that a client connects to. Raises Refused INVALID_ADDRESS."""
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
            problem = "must be set to resume after what was delivered"
            raise catalogue.INVALID_ARGUMENT.refused(field="user", problem=problem)
    except Refused as reason:
        raise catalogue.INVALID_ADDRESS.refused(problem=str(reason)) from None
    tenant, agent, platform, kind, target_id = topic_of(address)
    # Thousands of connections share these strings; without interning each would keep copies.
    return (intern(tenant), intern(agent), intern(platform), kind, target_id)
