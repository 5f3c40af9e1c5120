"""Links, the connections on them, and the topics that connections hear."""

from __future__ import annotations

from trunkline.v1.address_pb2 import Address, Conversation
from trunkline.v1.edge_service_pb2 import TopicFrame
from trunkline.v1.presence_service_pb2 import Connection as ConnectionProto

from trunkline_router.core.directory.link_outbox import LinkOutbox
from trunkline_router.core.directory.recovery import Catchup, LinkCatchup
from trunkline_router.core.tenants.tenant import Tenant
from trunkline_router.core.values.permissions import Permissions
from trunkline_router.core.values.topics import GROUP, NO_TARGET, USER, Position, TopicKey, address_of


class Link:
    """One edge's stream, and the edge's connections."""

    __slots__ = (
        "blocked_by",
        "boot_id",
        "connections",
        "credit",
        "edge_id",
        "heard_at",
        "is_lost",
        "next_topic",
        "outbox",
        "resume_positions",
        "unreturned_credit",
    )

    def __init__(self, edge_id: str, boot_id: str, outbox: LinkOutbox, now: float) -> None:
        self.edge_id = edge_id
        self.boot_id = boot_id
        self.outbox = outbox
        self.connections: dict[int, ConnectedClient] = {}
        self.next_topic = 1
        #: Batches that the edge may still send, and those processed whose credit is not yet returned.
        self.credit = 0
        self.unreturned_credit = 0
        self.heard_at = now
        #: The stream broke; the connections are kept until the lease ends or the edge links again.
        self.is_lost = False
        #: Links whose outboxes were filled by frames from this one.
        self.blocked_by: set[Link] = set()
        #: Positions of the edge's listeners on its previous link, until they have caught up.
        self.resume_positions: dict[TopicKey, Position] = {}

    def mark_lost(self) -> None:
        """The stream broke: discard the outbox and everything added to it later."""
        self.is_lost = True
        self.outbox.discard()

    def __repr__(self) -> str:
        state = "lost" if self.is_lost else "up"
        return f"<Link {self.edge_id} {state}, {len(self.connections)} connections, {self.outbox!r}>"


class LinkSubscription:
    """A topic on one link: its number there, and how many of the link's connections hear it."""

    __slots__ = ("catchup", "delta", "generation", "is_restored", "link", "listeners", "number")

    def __init__(self, link: Link, number: int) -> None:
        self.link = link
        self.number = number
        self.listeners = 0
        #: Set while the link catches up after a break; live messages wait there meanwhile.
        self.catchup: LinkCatchup | None = None
        #: The edge named its listeners' position, and they are sent what they missed since.
        self.is_restored = False
        #: Last delta added to the outbox, and the outbox's generation then. While that is the same, the
        #: next delta may be merged into it.
        self.delta: TopicFrame | None = None
        self.generation = 0


class Topic:
    """A topic that some connection hears or is about to hear."""

    __slots__ = ("catchups", "key", "links", "position", "reference_count")

    def __init__(self, key: TopicKey, position: Position | None) -> None:
        self.key = key
        #: End of the log as delivered to listeners; None until it has been read.
        self.position = position
        #: Links on which some connection hears the topic; a list, as they are few.
        self.links: list[LinkSubscription] = []
        #: Catch-ups that are reading the log; None if there are none.
        self.catchups: list[Catchup] | None = None
        #: Connections that hear the topic or are about to; the directory drops the topic at 0.
        self.reference_count = 0

    @property
    def address(self) -> Address:
        """The topic's address. Shared between callers, which must not change it."""
        return address_of(self.key)

    def subscription_on(self, link: Link) -> LinkSubscription | None:
        """Return the link's subscription to the topic."""
        for subscription in self.links:
            if subscription.link is link:
                return subscription
        return None

    @property
    def listeners(self) -> int:
        """Number of connections that hear the topic."""
        return sum(subscription.listeners for subscription in self.links)

    def __repr__(self) -> str:
        return f"<Topic {self.key} at {self.position}, {self.listeners} listeners>"


class ConnectedClient:
    """One client connection of an edge."""

    __slots__ = (
        "echo",
        "holder",
        "home",
        "id",
        "link",
        "number",
        "opened_ms",
        "pending_groups",
        "permissions",
        "protocol",
        "supersedes",
        "tenant",
        "topics",
        "user",
    )

    def __init__(
        self, tenant: Tenant, link: Link, number: int, connection_id: str, home: TopicKey, user: str
    ) -> None:
        self.tenant = tenant
        self.link = link
        self.number = number
        self.id = connection_id
        #: Conversation that the client connected to, or its platform if it named none.
        self.home = home
        self.user = user
        #: Topics that the connection hears, in the order of subscription.
        self.topics: list[Topic] = []
        #: Number of groups whose subscription is under way.
        self.pending_groups = 0
        self.opened_ms = 0
        self.protocol = ""
        #: The connection receives its own messages like everyone else's.
        self.echo = False
        #: See ConnectionOpened.
        self.supersedes = False
        self.holder = ""
        #: Permissions from its token; None if it needed none.
        self.permissions: Permissions | None = None

    def subscription_to(self, key: TopicKey) -> Topic | None:
        """Return the topic if the connection hears it."""
        for topic in self.topics:
            if topic.key == key:
                return topic
        return None

    def listens_to(self, key: TopicKey) -> bool:
        """Return whether the connection hears a topic."""
        return self.subscription_to(key) is not None

    @property
    def may_subscribe(self) -> bool:
        """The connection may hear topics; without that, it may only publish in its home conversation."""
        return self.permissions is None or self.permissions.may_subscribe

    def participates_in(self, key: TopicKey) -> bool:
        """Return whether the connection may publish in a conversation, rights aside."""
        return self.subscription_to(key) is not None or (key == self.home and not self.may_subscribe)

    @property
    def groups(self) -> list[Conversation]:
        """Groups that the connection joined after it was opened."""
        keys = [t.key for t in self.topics if t.key[3] == GROUP and t.key != self.home]
        return [Conversation(kind=key[3], id=key[4]) for key in keys]  # type: ignore[arg-type]

    def to_proto(self) -> ConnectionProto:
        """Return the connection as a message of the contract."""
        proto = ConnectionProto(
            connection_id=self.id,
            address=address_of(self.home),
            user=self.user,
            edge_id=self.link.edge_id,
            protocol=self.protocol,
            groups=self.groups,
        )
        proto.connected_at.FromMilliseconds(self.opened_ms)
        return proto

    def __repr__(self) -> str:
        return f"<ConnectedClient {self.id} of {self.home} on {self.link.edge_id}>"


def default_topics(home: TopicKey, user: str) -> list[TopicKey]:
    """Return the topics that a connection hears without subscribing, broadest first."""
    tenant, agent, platform, kind, _ = home
    keys: list[TopicKey] = [
        (tenant, "", "", NO_TARGET, ""),
        (tenant, agent, "", NO_TARGET, ""),
        (tenant, agent, platform, NO_TARGET, ""),
    ]
    if kind != NO_TARGET:
        keys.append(home)
    if user:
        keys.append((tenant, "", "", USER, user))
    return keys
