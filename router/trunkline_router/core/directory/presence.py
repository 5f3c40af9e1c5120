"""Who watches connections come and go."""

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

from trunkline_router.core.directory.connections import ConnectedClient, topics_heard
from trunkline_router.core.directory.directory import Directory
from trunkline_router.core.values.topics import TopicKey, topic_of

#: Changes that may wait for one watcher.
MAX_WAITING_CHANGES = 10_000

#: Changes in one message, of which a stock client takes at most 4 MiB.
CHANGES_A_MESSAGE = 500


class Watcher:
    """One caller of WatchConnections.

    Holds what waits for it. Beyond MAX_WAITING_CHANGES, those present at the beginning not counted, it
    is `overrun`: it is told no more, and its stream is to be refused.
    """

    __slots__ = ("_changes", "_most", "address", "overrun")

    def __init__(self, address: Address, present: list[ConnectionChange]) -> None:
        self.address = address
        self.overrun = False
        self._changes = deque(present)
        self._most = len(present) + MAX_WAITING_CHANGES

    def tell(self, change: ConnectionChange) -> None:
        """Something changed."""
        if len(self._changes) >= self._most:
            self.overrun = True
        if not self.overrun:
            self._changes.append(change)

    def take(self) -> WatchConnectionsResponse | None:
        """The next of what waits, or None."""
        if not self._changes:
            return None
        count = min(len(self._changes), CHANGES_A_MESSAGE)
        return WatchConnectionsResponse(changes=[self._changes.popleft() for _ in range(count)])


class Presence:
    """Tells watchers of connections that open and close."""

    def __init__(self, directory: Directory, mail: set[Watcher]) -> None:
        self._directory = directory
        self._mail = mail
        #: By tenant.
        self._watchers: dict[str, list[Watcher]] = {}

    def watch(self, address: Address) -> Watcher:
        """Begin with those there are."""
        watcher = Watcher(
            address,
            [
                ConnectionChange(event=CONNECTION_EVENT_PRESENT, connection=connection.to_proto())
                for connection in self._directory.matching(address)
            ],
        )
        self._watchers.setdefault(address.tenant, []).append(watcher)
        self._mail.add(watcher)
        return watcher

    def unwatch(self, watcher: Watcher) -> None:
        """The caller is gone."""
        self._mail.discard(watcher)
        watchers = self._watchers[watcher.address.tenant]
        watchers.remove(watcher)
        if not watchers:
            del self._watchers[watcher.address.tenant]

    def opened(self, connection: ConnectedClient) -> None:
        """A connection was accepted."""
        tenant = connection.tenant
        self._directory.accept(connection)
        tenant.connections_opened += 1
        self._tell(connection, CONNECTION_EVENT_OPENED)

    def closed(self, connection: ConnectedClient) -> None:
        """An accepted connection is gone; called while it still hears its topics."""
        tenant = connection.tenant
        if not self._directory.remove(connection):
            return
        tenant.connections_closed += 1
        self._tell(connection, CONNECTION_EVENT_CLOSED)

    def joined(self, connection: ConnectedClient, key: TopicKey) -> None:
        """An accepted connection has subscribed to a group: to those who watch that, it is new."""
        self._tell(connection, CONNECTION_EVENT_OPENED, key)

    def left(self, connection: ConnectedClient, key: TopicKey) -> None:
        """An accepted connection has left a group: to those who watch that, it is gone."""
        self._tell(connection, CONNECTION_EVENT_CLOSED, key)

    def _tell(
        self, connection: ConnectedClient, event: ConnectionEvent.ValueType, only: TopicKey | None = None
    ) -> None:
        for watcher in self._watchers.get(connection.home[0], ()):
            if only is not None:
                told = _watches(watcher.address, only)
            else:
                told = _matches(watcher.address, connection)
            if told and not watcher.overrun:
                watcher.tell(ConnectionChange(event=event, connection=connection.to_proto()))
                self._mail.add(watcher)


def _watches(address: Address, key: TopicKey) -> bool:
    return address.WhichOneof("target") != "connection" and topic_of(address) == key


def _matches(address: Address, connection: ConnectedClient) -> bool:
    if address.WhichOneof("target") == "connection":
        return connection.id == address.connection
    key = topic_of(address)
    # A connection that opens is announced just before it joins the topics of its own.
    return connection.hears(key) is not None or key in topics_heard(connection.home, connection.user)
