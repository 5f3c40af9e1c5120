"""Watchers of connections that open and close."""

from __future__ import annotations

from collections import deque

from trunkline.v1.address_pb2 import Address
from trunkline.v1.presence_service_pb2 import (
    CONNECTION_EVENT_CLOSED,
    CONNECTION_EVENT_OPENED,
    CONNECTION_EVENT_PRESENT,
    ConnectionChange,
    ConnectionEvent,
    WatchConnectionsResponse,
)

from trunkline_router.core.directory.connections import ConnectedClient, default_topics
from trunkline_router.core.directory.directory import Directory
from trunkline_router.core.values.topics import TopicKey, topic_of

#: Bound of changes that wait for one watcher.
MAX_WAITING_CHANGES = 10_000

#: Changes in one message; a stock gRPC client accepts at most 4 MiB.
CHANGES_PER_MESSAGE = 500


class Watcher:
    """Changes waiting for one caller of WatchConnections.

    Beyond MAX_WAITING_CHANGES, not counting connections present at the beginning, it is `is_overrun`: further
    changes are dropped, and its stream must be ended.
    """

    __slots__ = ("_changes", "_max_waiting", "address", "is_overrun")

    def __init__(self, address: Address, present: list[ConnectionChange]) -> None:
        self.address = address
        self.is_overrun = False
        self._changes = deque(present)
        self._max_waiting = len(present) + MAX_WAITING_CHANGES

    def notify(self, change: ConnectionChange) -> None:
        """Append a change; overrun if there is no room."""
        if len(self._changes) >= self._max_waiting:
            self.is_overrun = True
        if not self.is_overrun:
            self._changes.append(change)

    def take(self) -> WatchConnectionsResponse | None:
        """Take the next message with up to CHANGES_PER_MESSAGE changes; None if there are none."""
        if not self._changes:
            return None
        count = min(len(self._changes), CHANGES_PER_MESSAGE)
        return WatchConnectionsResponse(changes=[self._changes.popleft() for _ in range(count)])


class Presence:
    """Notifies watchers of connections that open and close."""

    def __init__(self, directory: Directory, peers: set[Watcher]) -> None:
        self._directory = directory
        self._peers = peers
        #: By name of the tenant.
        self._watchers: dict[str, list[Watcher]] = {}

    def watch(self, address: Address) -> Watcher:
        """Add a watcher, which first gets the connections that are present."""
        watcher = Watcher(
            address,
            [
                ConnectionChange(event=CONNECTION_EVENT_PRESENT, connection=connection.to_proto())
                for connection in self._directory.matching(address)
            ],
        )
        self._watchers.setdefault(address.tenant, []).append(watcher)
        self._peers.add(watcher)
        return watcher

    def unwatch(self, watcher: Watcher) -> None:
        """Remove a watcher whose caller is gone."""
        self._peers.discard(watcher)
        watchers = self._watchers[watcher.address.tenant]
        watchers.remove(watcher)
        if not watchers:
            del self._watchers[watcher.address.tenant]

    def opened(self, connection: ConnectedClient) -> None:
        """A connection was accepted."""
        tenant = connection.tenant
        self._directory.accept(connection)
        tenant.connections_opened += 1
        self._notify(connection, CONNECTION_EVENT_OPENED)

    def closed(self, connection: ConnectedClient) -> None:
        """A connection has closed; called while it still hears its topics."""
        tenant = connection.tenant
        if not self._directory.remove(connection):
            return
        tenant.connections_closed += 1
        self._notify(connection, CONNECTION_EVENT_CLOSED)

    def joined(self, connection: ConnectedClient, key: TopicKey) -> None:
        """An accepted connection has subscribed to a group; the group's watchers see it open."""
        self._notify(connection, CONNECTION_EVENT_OPENED, key)

    def left(self, connection: ConnectedClient, key: TopicKey) -> None:
        """An accepted connection has left a group; the group's watchers see it close."""
        self._notify(connection, CONNECTION_EVENT_CLOSED, key)

    def _notify(
        self, connection: ConnectedClient, event: ConnectionEvent.ValueType, only: TopicKey | None = None
    ) -> None:
        for watcher in self._watchers.get(connection.home[0], ()):
            if only is not None:
                concerned = _watches(watcher.address, only)
            else:
                concerned = _matches(watcher.address, connection)
            if concerned and not watcher.is_overrun:
                watcher.notify(ConnectionChange(event=event, connection=connection.to_proto()))
                self._peers.add(watcher)


def _watches(address: Address, key: TopicKey) -> bool:
    return address.WhichOneof("target") != "connection" and topic_of(address) == key


def _matches(address: Address, connection: ConnectedClient) -> bool:
    if address.WhichOneof("target") == "connection":
        return connection.id == address.connection
    key = topic_of(address)
    # A connection is announced just before it subscribes to its default topics.
    return connection.subscription_to(key) is not None or key in default_topics(
        connection.home, connection.user
    )
