"""Who is connected where, and who hears what."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import MappingProxyType

from trunkline.v1 import catalogue
from trunkline.v1.address_pb2 import Address

from trunkline_router.core.directory.connections import ConnectedClient, Link, LinkSubscription, Topic
from trunkline_router.core.tenants.tenant import Tenant
from trunkline_router.core.values.topics import Position, TopicKey, topic_of

_NO_CONNECTIONS: Mapping[str, ConnectedClient] = MappingProxyType({})


class Directory:
    """The tables of tenants, links, connections and topics."""

    def __init__(self) -> None:
        self.tenants: dict[str, Tenant] = {}
        self.links: dict[str, Link] = {}
        self.topics: dict[TopicKey, Topic] = {}
        #: Accepted connections by id. By tenant, not by its name: one that was deleted and one created
        #: later under the same name share nothing.
        self._accepted: dict[Tenant, dict[str, ConnectedClient]] = {}

    def tenant(self, name: str) -> Tenant:
        """A tenant that takes part. Raises Refused where it does not, or nobody declared it."""
        tenant = self.tenants.get(name)
        if tenant is None:
            raise catalogue.UNKNOWN_TENANT.refused(tenant=name)
        if not tenant.is_active:
            tenant.check_active()
        return tenant

    def connections_of(self, tenant: Tenant) -> Mapping[str, ConnectedClient]:
        """The tenant's accepted connections by id."""
        return self._accepted.get(tenant, _NO_CONNECTIONS)

    def accept(self, connection: ConnectedClient) -> None:
        """Add a connection whose client has been admitted."""
        self._accepted.setdefault(connection.tenant, {})[connection.id] = connection

    def remove(self, connection: ConnectedClient) -> bool:
        """Remove a connection. Returns False if it was never accepted."""
        accepted = self._accepted.get(connection.tenant)
        if accepted is None or accepted.pop(connection.id, None) is None:
            return False
        if not accepted:
            del self._accepted[connection.tenant]
        return True

    def enter(self, key: TopicKey, position: Position | None) -> Topic:
        """The topic, with one user more; `position` is for a topic that nobody used before."""
        topic = self.topics.get(key)
        if topic is None:
            topic = self.topics[key] = Topic(key, position)
        topic.users += 1
        return topic

    def leave(self, topic: Topic) -> None:
        """The topic has one user less; forgotten with the last."""
        topic.users -= 1
        if not topic.users:
            del self.topics[topic.key]

    def join(self, connection: ConnectedClient, topic: Topic) -> LinkSubscription:
        """The connection hears the topic from here on. Tells its link what it must know first."""
        link_topic = self.announce(connection.link, topic)
        link_topic.listeners += 1
        return link_topic

    def announce(self, link: Link, topic: Topic) -> LinkSubscription:
        """The topic as the link knows it, made known to it if it was not."""
        link_topic = topic.on(link)
        if link_topic is None:
            link_topic = LinkSubscription(link, link.next_topic)
            link.next_topic += 1
            topic.links.append(link_topic)
            opened = link.outbox.add(128).topic
            opened.topic = link_topic.number
            opened.address.CopyFrom(topic.address)
            if topic.position is not None:
                opened.position.CopyFrom(topic.position.to_proto())
        return link_topic

    def part(self, connection: ConnectedClient, topic: Topic) -> None:
        """The connection does not hear the topic any longer."""
        link_topic = topic.on(connection.link)
        if link_topic is None:
            return
        link_topic.listeners -= 1
        if not link_topic.listeners:
            topic.links.remove(link_topic)
            connection.link.outbox.add().forget.topic = link_topic.number

    def heard_alone(self, connection: ConnectedClient, topic: Topic) -> LinkSubscription | None:
        """The topic as the connection's link knows it, if what it says there is news to nobody."""
        link = connection.link
        if connection.echo:
            return None
        if link.connections.get(connection.number) is not connection or topic not in connection.topics:
            return None
        link_topic = topic.on(link)
        return link_topic if link_topic is not None and link_topic.listeners == 1 else None

    def matching(self, address: Address) -> Iterator[ConnectedClient]:
        """The connections that a valid address matches."""
        tenant = self.tenants.get(address.tenant)
        if tenant is None:
            return
        target = address.WhichOneof("target")
        if target == "connection":
            if connection := self.connections_of(tenant).get(address.connection):
                yield connection
            return
        key = topic_of(address)
        for connection in self.connections_of(tenant).values():
            if connection.hears(key):
                yield connection

    def count(self, key: TopicKey) -> int:
        """Connections that hear a topic."""
        topic = self.topics.get(key)
        return topic.listeners if topic else 0

    def count_reachable(self, key: TopicKey) -> int:
        """Connections that hear a topic, on links that are up."""
        topic = self.topics.get(key)
        return sum(on.listeners for on in topic.links if not on.link.lost) if topic else 0
