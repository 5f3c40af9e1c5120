"""Links, the connections on them, and the topics that these hear."""

from __future__ import annotations

from trunkline.v1.address_pb2 import Address, Conversation
from trunkline.v1.edge_service_pb2 import TopicFrame
from trunkline.v1.presence_service_pb2 import Connection as ConnectionProto

from trunkline_router.core.directory.link_outbox import LinkOutbox
from trunkline_router.core.directory.recovery import Catchup, LinkCatchup
from trunkline_router.core.tenants.tenant import Tenant
from trunkline_router.core.values.permissions import Permissions
from trunkline_router.core.values.topics import (
    GROUP,
    NO_TARGET,
    USER,
    Position,
    TopicKey,
    address_of,
)


class Link:
    """One edge's stream, and the edge's connections."""

    __slots__ = (
        "allowed",
        "blocked_by",
        "boot_id",
        "connections",
        "edge_id",
        "heard_at",
        "lost",
        "next_topic",
        "outbox",
        "restoring",
        "withheld",
    )

    def __init__(self, edge_id: str, boot_id: str, outbox: LinkOutbox, now: float) -> None:
        self.edge_id = edge_id
        self.boot_id = boot_id
        self.outbox = outbox
        self.connections: dict[int, ConnectedClient] = {}
        self.next_topic = 1
        #: Batches that the edge may still send, and those dealt with whose credit is not yet returned.
        self.allowed = 0
        self.withheld = 0
        self.heard_at = now
        #: The stream broke; the connections are kept until the lease ends or the edge links again.
        self.lost = False
        #: Links whose outboxes were filled by what came over this one.
        self.blocked_by: set[Link] = set()
        #: How far the edge's listeners had come on the link before this one, until told what is new.
        self.restoring: dict[TopicKey, Position] = {}

    def lose(self) -> None:
        """The stream is gone: nothing is kept for it any longer."""
        self.lost = True
        self.outbox.discard()

    def __repr__(self) -> str:
        state = "lost" if self.lost else "up"
        return f"<Link {self.edge_id} {state}, {len(self.connections)} connections, {self.outbox!r}>"


class LinkSubscription:
    """A topic as one link knows it: its number there, and how many connections hear it."""

    __slots__ = ("catchup", "delta", "is_restored", "link", "listeners", "mark", "number")

    def __init__(self, link: Link, number: int) -> None:
        self.link = link
        self.number = number
        self.listeners = 0
        #: Set while the link is told what it missed; live messages wait there meanwhile.
        self.catchup: LinkCatchup | None = None
        #: The edge said how far its listeners had come, and they are told what they missed since.
        self.is_restored = False
        #: The last delta put into the link's outbox, and the outbox's mark then: while that is the same,
        #: the next delta may be joined to it.
        self.delta: TopicFrame | None = None
        self.mark = 0


class Topic:
    """A topic that somebody hears or is about to hear."""

    __slots__ = ("catchups", "key", "links", "position", "users")

    def __init__(self, key: TopicKey, position: Position | None) -> None:
        self.key = key
        #: The end of the log as told to listeners; None until it has been read.
        self.position = position
        #: One entry per link on which somebody hears it; a list, as there are few.
        self.links: list[LinkSubscription] = []
        #: Those who are reading their way to the end of the log; None where nobody is.
        self.catchups: list[Catchup] | None = None
        #: Connections that hear it or are about to; the topic is forgotten at 0.
        self.users = 0

    @property
    def address(self) -> Address:
        """Its address; shared, so not to be changed."""
        return address_of(self.key)

    def on(self, link: Link) -> LinkSubscription | None:
        """What the link knows of it."""
        for link_topic in self.links:
            if link_topic.link is link:
                return link_topic
        return None

    @property
    def listeners(self) -> int:
        """Connections that hear it."""
        return sum(link_topic.listeners for link_topic in self.links)

    def __repr__(self) -> str:
        return f"<Topic {self.key} at {self.position}, {self.listeners} listeners>"


class ConnectedClient:
    """One WebSocket on an edge."""

    __slots__ = (
        "allowed",
        "echo",
        "home",
        "id",
        "joining",
        "link",
        "number",
        "opened_ms",
        "protocol",
        "tenant",
        "topics",
        "user",
    )

    def __init__(
        self, tenant: Tenant, link: Link, number: int, ident: str, home: TopicKey, user: str
    ) -> None:
        self.tenant = tenant
        self.link = link
        self.number = number
        self.id = ident
        #: What it was made to: a conversation, or a platform without one.
        self.home = home
        self.user = user
        #: What it hears; in the order joined.
        self.topics: list[Topic] = []
        #: Groups that it has asked for and not yet joined.
        self.joining = 0
        self.opened_ms = 0
        self.protocol = ""
        #: What it says is told to it as to the others.
        self.echo = False
        #: What its token allows; None where it needed none.
        self.allowed: Permissions | None = None

    def hears(self, key: TopicKey) -> Topic | None:
        """The topic, if the connection hears it."""
        for topic in self.topics:
            if topic.key == key:
                return topic
        return None

    @property
    def may_hear(self) -> bool:
        """It may hear topics; one that may not can only speak in its own conversation."""
        return self.allowed is None or self.allowed.may_hear

    def takes_part_in(self, key: TopicKey) -> bool:
        """It may speak there."""
        return self.hears(key) is not None or (key == self.home and not self.may_hear)

    @property
    def groups(self) -> list[Conversation]:
        """The groups joined since it was made."""
        keys = [t.key for t in self.topics if t.key[3] == GROUP and t.key != self.home]
        return [Conversation(kind=key[3], id=key[4]) for key in keys]  # type: ignore[arg-type]

    def to_proto(self) -> ConnectionProto:
        """The contract's form."""
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
        return f"<Connection {self.id} of {self.home} on {self.link.edge_id}>"


def topics_heard(home: TopicKey, user: str) -> list[TopicKey]:
    """The topics that a connection hears by itself, broadest first."""
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
