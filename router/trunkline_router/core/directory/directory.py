"""Directory of tenants, links, connections and topics."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import MappingProxyType

from trunkline.v1 import catalogue
from trunkline.v1.address_pb2 import Address
from trunkline.v1.tenant_pb2 import AgentSettings

from trunkline_router.core.directory.connections import ConnectedClient, Link, LinkSubscription, Topic
from trunkline_router.core.directory.live_signals import LiveSignals
from trunkline_router.core.tenants.tenant import Tenant
from trunkline_router.core.values.topics import Position, TopicKey, topic_of

_NO_CONNECTIONS: Mapping[str, ConnectedClient] = MappingProxyType({})


class Directory:
    """Tables of tenants, links, connections and topics."""

    def __init__(self) -> None:
        self.tenants: dict[str, Tenant] = {}
        self.links: dict[str, Link] = {}
        self.topics: dict[TopicKey, Topic] = {}
        self.live_signals = LiveSignals()
        #: Accepted connections by id. By tenant, not by its name: a deleted tenant and one created later
        #: under the same name share nothing.
        self._accepted: dict[Tenant, dict[str, ConnectedClient]] = {}

    def active_tenant(self, name: str) -> Tenant:
        """Return a tenant. Raises Refused UNKNOWN_TENANT or TENANT_SUSPENDED unless it is active."""
        tenant = self.tenants.get(name)
        if tenant is None:
            raise catalogue.UNKNOWN_TENANT.refused(tenant=name)
        tenant.check_active()
        return tenant

    def agent_settings(self, tenant: str, agent: str) -> AgentSettings:
        """Return the settings of a tenant's agent; all fields are 0 if there is no such tenant."""
        known = self.tenants.get(tenant)
        return known.agent_settings(agent) if known is not None else AgentSettings()

    def concurrency_of(self, tenant: str, agent: str) -> int:
        """Return the number of deliveries of one conversation that an agent's workers may hold."""
        return self.agent_settings(tenant, agent).concurrency or 1

    # Connections

    def connections_of(self, tenant: Tenant) -> Mapping[str, ConnectedClient]:
        """Return the tenant's accepted connections by id."""
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

    def matching(self, address: Address) -> Iterator[ConnectedClient]:
        """Iterate over the connections that a valid address matches."""
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
            if connection.subscription_to(key):
                yield connection

    # Topics

    def acquire_topic(self, key: TopicKey, position: Position | None) -> Topic:
        """Return the topic and hold a reference to it; a new topic starts at `position`."""
        topic = self.topics.get(key)
        if topic is None:
            topic = self.topics[key] = Topic(key, position)
        topic.reference_count += 1
        return topic

    def release_topic(self, topic: Topic) -> None:
        """Drop a reference to the topic, and the topic with the last one."""
        topic.reference_count -= 1
        if not topic.reference_count:
            del self.topics[topic.key]

    def subscribe(self, connection: ConnectedClient, topic: Topic) -> LinkSubscription:
        """Let the connection hear the topic from here on, announcing the topic to its link if needed."""
        subscription = self.announce_topic(connection.link, topic)
        subscription.listeners += 1
        return subscription

    def announce_topic(self, link: Link, topic: Topic) -> LinkSubscription:
        """Return the link's subscription to the topic, after announcing the topic to a new link.

        The signals that live there are announced with it.
        """
        subscription = topic.subscription_on(link)
        if subscription is None:
            subscription = LinkSubscription(link, link.next_topic)
            link.next_topic += 1
            topic.links.append(subscription)
            opened = link.outbox.add(128).topic
            opened.topic = subscription.number
            opened.address.CopyFrom(topic.address)
            if topic.position is not None:
                opened.position.CopyFrom(topic.position.to_proto())
            for signal, remaining_ms in self.live_signals.of_topic(topic.key):
                publish = link.outbox.add(signal.ByteSize()).publish
                publish.topic = subscription.number
                publish.frame.signal.CopyFrom(signal)
                publish.frame.signal.ttl_ms = remaining_ms
        return subscription

    def unsubscribe(self, connection: ConnectedClient, topic: Topic) -> None:
        """Stop delivering the topic to the connection; the link drops the topic with its last listener."""
        subscription = topic.subscription_on(connection.link)
        if subscription is None:
            return
        subscription.listeners -= 1
        if not subscription.listeners:
            topic.links.remove(subscription)
            connection.link.outbox.add().forget.topic = subscription.number

    def sole_subscription(self, connection: ConnectedClient, topic: Topic) -> LinkSubscription | None:
        """Return the subscription of the connection's link if nobody there needs the connection's messages.

        The connection is then the link's only listener, and gets no echo.
        """
        link = connection.link
        if connection.echo:
            return None
        if link.connections.get(connection.number) is not connection or topic not in connection.topics:
            return None
        subscription = topic.subscription_on(link)
        return subscription if subscription is not None and subscription.listeners == 1 else None

    def count_listeners(self, key: TopicKey) -> int:
        """Return the number of connections that hear a topic."""
        topic = self.topics.get(key)
        return topic.listeners if topic else 0

    def count_reachable(self, key: TopicKey) -> int:
        """Return the number of connections that hear a topic on links that are up."""
        topic = self.topics.get(key)
        return sum(each.listeners for each in topic.links if not each.link.is_lost) if topic else 0
