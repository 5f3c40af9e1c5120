"""Who watches connections come and go."""

from __future__ import annotations

from trunkline.v1.address_pb2 import Address
from trunkline.v1.presence_service_pb2 import (
    CONNECTION_EVENT_CLOSED,
    CONNECTION_EVENT_OPENED,
    CONNECTION_EVENT_PRESENT,
    ConnectionEvent,
    WatchConnectionsResponse,
)

from router.core.directory import Connection, Directory, topics_heard
from router.core.topics import topic_of

#: Changes that may wait for one watcher.
MAX_WAITING_CHANGES = 10_000


class Watcher:
    """One caller of WatchConnections.

    `outbox` holds what waits for it. Beyond MAX_WAITING_CHANGES it is `overrun`: it is told no more,
    and its stream is to be refused.
    """

    __slots__ = ("address", "outbox", "overrun")

    def __init__(self, address: Address) -> None:
        self.address = address
        self.outbox = WatchConnectionsResponse()
        self.overrun = False

    def take(self) -> WatchConnectionsResponse | None:
        """What waits, or None."""
        if not self.outbox.changes:
            return None
        batch, self.outbox = self.outbox, WatchConnectionsResponse()
        return batch


class Presence:
    """Tells watchers of connections that open and close."""

    def __init__(self, directory: Directory, mail: set[Watcher]) -> None:
        self._directory = directory
        self._mail = mail
        #: By tenant.
        self._watchers: dict[str, list[Watcher]] = {}

    def watch(self, address: Address) -> Watcher:
        """Begin with those there are."""
        watcher = Watcher(address)
        for connection in self._directory.matching(address):
            watcher.outbox.changes.add(event=CONNECTION_EVENT_PRESENT, connection=connection.to_proto())
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

    def opened(self, connection: Connection) -> None:
        """A connection was accepted."""
        tenant = self._directory.tenant_of(connection)
        tenant.connections[connection.id] = connection
        tenant.connections_opened += 1
        self._tell(connection, CONNECTION_EVENT_OPENED)

    def closed(self, connection: Connection) -> None:
        """An accepted connection is gone; called while it still hears its topics."""
        tenant = self._directory.tenant_of(connection)
        if tenant.connections.pop(connection.id, None) is None:
            return
        tenant.connections_closed += 1
        self._tell(connection, CONNECTION_EVENT_CLOSED)

    def _tell(self, connection: Connection, event: ConnectionEvent.ValueType) -> None:
        for watcher in self._watchers.get(connection.home[0], ()):
            if not _matches(watcher.address, connection) or watcher.overrun:
                continue
            if len(watcher.outbox.changes) >= MAX_WAITING_CHANGES:
                watcher.overrun = True
            else:
                watcher.outbox.changes.add(event=event, connection=connection.to_proto())
            self._mail.add(watcher)


def _matches(address: Address, connection: Connection) -> bool:
    if address.WhichOneof("target") == "connection":
        return connection.id == address.connection
    key = topic_of(address)
    # A connection that opens is announced just before it joins the topics of its own.
    return connection.hears(key) is not None or key in topics_heard(connection.home, connection.user)
