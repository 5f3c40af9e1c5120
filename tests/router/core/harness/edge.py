"""An edge as the contract describes it, without sockets."""

from __future__ import annotations

from trunkline.v1.edge_service_pb2 import LinkRequest, LinkResponse, RouterEntry, TenantPolicy
from trunkline.v1.frame_pb2 import ClientFrame, ServerFrame
from trunkline_router.core.directory.connections import Link, default_topics
from trunkline_router.core.values.topics import Position, TopicKey, address_of, position_of, topic_of

from tests.router.core.harness.client import REQUESTS, Client


class Heard:
    """A topic on this edge."""

    def __init__(self, key: TopicKey, position: Position) -> None:
        self.key = key
        self.position = position
        self.listeners: list[Client] = []


class Edge:
    """One edge. `inbox` is the next batch to send over the link."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.link: Link | None = None
        self.clients: dict[int, Client] = {}
        #: Clients that have connected or subscribed, and whose missed entries are still arriving.
        self.replaying: dict[int, Client] = {}
        self.topics: dict[int, Heard] = {}
        self.orphans: dict[TopicKey, Heard] = {}
        self.inbox = LinkRequest()
        #: Policies received from the router, and whether they are complete.
        self.policies: dict[str, TenantPolicy] = {}
        self.knows_policies = False
        #: Some clients are not made known yet, so the router may forget what they hear.
        self.is_partly_known = False
        self._numbers = iter(range(1, 1_000_000))

    def new_client(self, home: TopicKey, user: str) -> Client:
        """Create a client, not yet connected."""
        client = Client(self, next(self._numbers), home, user)
        self.clients[client.number] = client
        return client

    def open(self, client: Client) -> None:
        """Announce a client to the router."""
        opened = self.inbox.entries.add().opened
        opened.connection, opened.connection_id, opened.user = client.number, client.id, client.user
        opened.remote_ip, opened.echo = client.remote_ip, client.echo
        if client.supersedes_at is not None:
            opened.supersedes, opened.opened_at.seconds = True, client.supersedes_at
            opened.holder = client.holder
        if client.grants is not None:
            opened.grants.CopyFrom(client.grants)
        opened.address.CopyFrom(address_of(client.home))
        if client.state == "open":
            opened.restored = True
            own = default_topics(client.home, client.user)
            for heard in self.orphans.values():
                if client in heard.listeners and heard.key not in own:
                    opened.groups.add(kind=heard.key[3], id=heard.key[4])
            return
        if client.resumes_delivered:
            opened.resume.delivered = True
        for key, position in client.resume.items():
            entry = opened.resume.positions.add(position=position.to_proto())
            entry.address.CopyFrom(address_of(key))

    def say(self, client: Client, frame: ClientFrame) -> None:
        """A client sends a frame."""
        kind = frame.WhichOneof("frame")
        if kind in REQUESTS:
            client.unanswered[getattr(frame, kind).id] = frame
        self.inbox.entries.add().frame.connection = client.number
        self.inbox.entries[-1].frame.frame.CopyFrom(frame)

    def close(self, client: Client) -> None:
        """A client disconnects."""
        client.state = "closed"
        self.clients.pop(client.number, None)
        self.replaying.pop(client.number, None)
        for heard in [*self.topics.values(), *self.orphans.values()]:
            if client in heard.listeners:
                heard.listeners.remove(client)
        self.inbox.entries.add().closed.connection = client.number

    def lost(self) -> None:
        """The link broke. A replay under way cannot be completed, so its client must connect again."""
        for client in list(self.replaying.values()):
            client.close_reason = "POSITION_LOST"
            self.close(client)
        self.link = None
        self.inbox = LinkRequest()
        self.orphans |= {heard.key: heard for heard in self.topics.values()}
        self.topics.clear()

    def linked(self, link: Link) -> None:
        """The link is up again: announce clients and topics."""
        self.link = link
        self.inbox = LinkRequest()
        self.orphans = {key: heard for key, heard in self.orphans.items() if heard.listeners}
        for heard in self.orphans.values():
            self.inbox.entries.add().topic.address.CopyFrom(address_of(heard.key))
            self.inbox.entries[-1].topic.position.CopyFrom(heard.position.to_proto())
        for client in sorted(self.clients.values(), key=lambda client: client.state != "open"):
            self.open(client)
        for client in self.clients.values():
            for frame in client.unanswered.values():
                self.inbox.entries.add().frame.connection = client.number
                self.inbox.entries[-1].frame.frame.CopyFrom(frame)

    def _policy(self, entry: RouterEntry) -> None:
        self.policies[entry.policy.tenant] = entry.policy

    def _gone(self, entry: RouterEntry) -> None:
        del self.policies[entry.gone.tenant]

    def _policies_told(self, entry: RouterEntry) -> None:
        self.knows_policies = True

    def received(self, batch: LinkResponse) -> None:
        """The router sent a batch."""
        for entry in batch.entries:
            getattr(self, f"_{entry.WhichOneof('entry')}")(entry)

    def _topic(self, entry: RouterEntry) -> None:
        key, position = topic_of(entry.topic.address), entry.topic.position
        new = Heard(key, Position(position.epoch, position.seq))
        assert entry.topic.topic not in self.topics
        self.topics[entry.topic.topic] = self.orphans.pop(key, new)

    def _join(self, entry: RouterEntry) -> None:
        client = self.clients.get(entry.join.connection)
        self.replaying.pop(entry.join.connection, None)
        for number in entry.join.topics:
            heard = self.topics[number]
            if client is not None and client not in heard.listeners:
                heard.listeners.append(client)

    def _leave(self, entry: RouterEntry) -> None:
        client = self.clients.get(entry.leave.connection)
        for number in entry.leave.topics:
            if client in self.topics[number].listeners:
                self.topics[number].listeners.remove(client)

    def _forget(self, entry: RouterEntry) -> None:
        heard = self.topics.pop(entry.forget.topic)
        assert self.is_partly_known or not heard.listeners, "a topic is dropped while it has listeners"

    def _publish(self, entry: RouterEntry) -> None:
        publish = entry.publish
        heard = self.topics.get(publish.topic)
        if heard is None:
            return
        frame = publish.frame
        excepted = {getattr(publish, "except")}
        if frame.HasField("message") and publish.replayed:
            excepted |= {c.number for c in heard.listeners if self._is_author(c, frame)}
        place = _place_of(frame)
        if place is not None and (place.seq > heard.position.seq or place.epoch != heard.position.epoch):
            # An open message that is sent again has an earlier position.
            heard.position = place
        for client in list(heard.listeners):
            if client.number not in excepted:
                client.got(frame, publish.deltas or 1)
            elif place is not None:
                client.came_to(place, heard.key)

    def _is_author(self, client: Client, frame: ServerFrame) -> bool:
        message = frame.message
        if client.echo:
            return False
        return message.client_id in client.unanswered and message.author.user == client.user

    def _send(self, entry: RouterEntry) -> None:
        if client := self.clients.get(entry.send.connection):
            if entry.send.frame.WhichOneof("frame") in ("connected", "subscribed"):
                self.replaying[client.number] = client
            client.got(entry.send.frame)
            if entry.send.topic:
                heard, ack = self.topics[entry.send.topic], entry.send.frame.ack
                assert heard.listeners == [client], "other listeners of the topic get nothing"
                heard.position = Position(ack.position.epoch, ack.position.seq)

    def _close(self, entry: RouterEntry) -> None:
        if client := self.clients.get(entry.close.connection):
            client.close_reason = entry.close.closing.reason
            self.close(client)


def _place_of(frame: ServerFrame) -> Position | None:
    """Return the position of a log entry; None for other frames."""
    kind = frame.WhichOneof("frame")
    if kind == "message" and frame.message.HasField("position"):
        return position_of(frame.message.position)
    if kind == "change":
        return position_of(frame.change.position)
    if kind == "read" and frame.read.HasField("at"):
        return position_of(frame.read.at)
    return None
