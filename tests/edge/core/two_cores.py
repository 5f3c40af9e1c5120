"""Edge cores and a router core, wired to each other without a socket, a clock or a disk.

Nothing moves by itself: what is under way on links, in the journal and in the log's reader is moved
step by step, so that a test can break a link with anything lost and anything still to come.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Callable
from typing import Any

from edge_core_world import group, parsed
from trunkline.v1.address_pb2 import Address, TopicPosition
from trunkline.v1.broadcast_service_pb2 import BroadcastRequest
from trunkline.v1.catalogue import Refused
from trunkline.v1.edge_service_pb2 import ConnectionOpened, LinkHello, LinkRequest, LinkResponse
from trunkline.v1.frame_pb2 import ClientFrame, ServerFrame

from edge.core.bounds import Limits
from edge.core.connection import Connection, State
from edge.core.edge import EdgeCore
from edge.dialects.registry import CODECS
from router.core.directory import Link
from router.core.effects import ReadHeads, ReadPages
from router.core.journal import Draft, Page, PageRequest, Verdict
from router.core.policies import Policies
from router.core.router import RouterCore
from router.core.topics import EMPTY, Position, TopicKey

PROTO = CODECS["trunkline.v1.proto"]
WINDOW = 2


class MemoryLog:
    """Commits at once, forgets nothing."""

    def __init__(self) -> None:
        self.topics: dict[TopicKey, list[bytes]] = defaultdict(list)
        self._keys: dict[bytes, tuple[str, int]] = {}
        self._messages = 0

    def head(self, topic: TopicKey) -> Position:
        return Position("e", len(self.topics[topic])) if self.topics[topic] else EMPTY

    def append(self, drafts: list[Draft]) -> None:
        for draft in drafts:
            message = draft.message
            if draft.key in self._keys:
                draft.verdict = Verdict.DUPLICATE
                message.id, message.position.seq = self._keys[draft.key]
                message.position.epoch = "e"
                continue
            self._messages += 1
            log = self.topics[draft.topic]
            message.id = f"id{self._messages}"
            message.position.epoch, message.position.seq = "e", len(log) + 1
            if draft.key is not None:
                self._keys[draft.key] = message.id, message.position.seq
            draft.verdict, draft.stored = Verdict.COMMITTED, message.SerializeToString()
            log.append(draft.stored)

    def page(self, request: PageRequest) -> Page:
        log, head = self.topics[request.topic], self.head(request.topic)
        after = request.after
        assert after is not None
        if after.seq > head.seq or after.epoch not in ("", head.epoch):
            return Page([], False, head, valid=False)
        rows = list(enumerate(log, 1))[after.seq :]
        return Page(rows[: request.limit], len(rows) > request.limit, head)


class Backend:
    """Origin of what a backend says."""

    connection = None

    def __init__(self) -> None:
        self.held_up_by: set[Link] = set()

    def committed(self, draft: Draft) -> None:
        pass

    def refused(self, draft: Draft, reason: Refused) -> None:
        raise reason


class Client:
    """Takes down what it is told, and holds the edge to its promises."""

    def __init__(self, world: World, edge: EdgeSide, connection: Connection, user: str) -> None:
        self.world, self.edge, self.connection, self.user = world, edge, connection, user
        self.closed_for = ""
        self.is_connected = False
        self.asked: dict[str, int] = {}
        #: By serialized address: where it began, the messages seen, and the own ones acknowledged.
        self.topics: dict[bytes, tuple[int, list[int], set[int]]] = {}

    def send(self, frame: ClientFrame) -> None:
        if self.connection.state is State.OPEN and not self.connection.held:
            inner = getattr(frame, frame.WhichOneof("frame") or "")
            inner.id = f"{self.connection.number}-{len(self.asked)}"
            self.asked[inner.id] = 0
            self.edge.core.received(self.connection, frame.SerializeToString())

    def take(self) -> None:
        data, self.connection.pending = b"".join(self.connection.pending), []
        for each in parsed(data):
            frame = ServerFrame.FromString(bytes(each.data))
            kind = frame.WhichOneof("frame") or ""
            assert not self.closed_for, f"{kind} after closing"
            assert self.is_connected == (kind != "connected") or kind == "closing"
            self._told(kind, getattr(frame, kind))

    def _told(self, kind: str, frame: Any) -> None:
        if kind == "connected":
            self.is_connected = True
            for each in frame.positions:
                self._begin(each.address, each.position.seq)
        elif kind == "closing":
            self.closed_for = frame.reason
        elif kind == "message":
            start, seen, own = self.topics[frame.address.SerializeToString()]
            seq = frame.position.seq
            assert seq > max(seen, default=start), f"{seq} after {seen} from {start}"
            assert seq not in own, "its own message again"
            seen.append(seq)
        else:
            self.asked[frame.id] += 1
            assert self.asked[frame.id] == 1, f"{frame.id} is answered twice"
            if kind == "ack" and (topic := self.topics.get(frame.address.SerializeToString())):
                topic[2].add(frame.position.seq)
            elif kind == "subscribed":
                self._begin(frame.address, frame.position.seq)
            elif kind == "unsubscribed":
                del self.topics[frame.address.SerializeToString()]

    def _begin(self, address: Address, seq: int) -> None:
        known = self.topics.get(address.SerializeToString())
        if known is None or seq > max([known[0], *known[1]]):
            self.topics[address.SerializeToString()] = (seq, [], set())

    @property
    def positions(self) -> list[TopicPosition]:
        """Where it would resume its home."""
        home = group("home").SerializeToString()
        if home not in self.topics:
            return []
        start, seen, own = self.topics[home]
        seq = start
        while seq + 1 in {*seen, *own}:
            seq += 1
        position = TopicPosition(address=group("home"))
        position.position.epoch, position.position.seq = "e" if seq else "", seq
        return [position]

    def missing(self) -> dict[bytes, set[int]]:
        """By topic, what it should have been shown by now and was not."""
        gaps = {}
        for address, (start, seen, own) in self.topics.items():
            head = self.world.heads().get(address, 0)
            gap = set(range(start + 1, head + 1)) - {*seen} - own
            if gap:
                gaps[address] = gap
        return gaps


class EdgeSide:
    """One edge, and what is under way on its link."""

    def __init__(self, world: World, name: str) -> None:
        self.world, self.name = world, name
        self.core = EdgeCore(Limits(unanswered=4))
        self.clients: dict[int, Client] = {}
        self.link: Link | None = None
        self.to_router: deque[LinkRequest] = deque()
        self.to_edge: deque[LinkResponse] = deque()

    def settle(self) -> None:
        for connection in self.core.dirty:
            self.clients[connection.number].take()
        self.core.dirty.clear()
        self.core.hold.clear()
        self.core.release.clear()

    def connect(self, resume: list[TopicPosition]) -> None:
        user = f"u{len(self.clients) % 3}"
        wish = ConnectionOpened(address=group("home"), user=user, remote_ip="127.0.0.1", connection_id="c")
        if resume:
            wish.resume.positions.extend(resume)
        connection = self.core.open(object(), PROTO, wish)
        self.clients[connection.number] = Client(self.world, self, connection, user)

    def relink(self) -> None:
        if self.link is not None:
            return
        hello = LinkHello(edge_id=self.name, boot_id="b", contract_minor=1)
        self.link, _ = self.world.router.linked(hello, 0)
        self.core.linked()
        self.core.link_received(LinkResponse(credit=WINDOW))
        self.world.router.link_received(self.link, LinkRequest(credit=WINDOW), 0)

    def lose(self, router_notices: bool) -> None:
        if self.link is None:
            return
        if router_notices:
            self.world.router.link_lost(self.link)
        self.link = None
        self.to_router.clear()
        self.to_edge.clear()
        self.core.link_lost()

    def write(self) -> bool:
        """Whatever may be written is under way."""
        if self.link is None:
            return False
        sent = [*iter(self.core.uplink.take, None)]
        self.to_router += sent
        got = [*iter(self.link.outbox.take, None)]
        self.to_edge += got
        if got:
            self.world.router.publishing.drained(self.link)
        self.core.drained()
        return bool(sent or got)

    def arrive_up(self) -> bool:
        if self.link is None or not self.to_router:
            return False
        self.world.router.link_received(self.link, self.to_router.popleft(), 0)
        return True

    def arrive_down(self) -> bool:
        if not self.to_edge:
            return False
        batch = self.to_edge.popleft()
        self.core.link_received(batch)
        if batch.entries:
            self.core.dealt_with(1)
        return True


class World:
    """Two edges and a router."""

    def __init__(self, knows_heads: bool) -> None:
        self.log = MemoryLog()
        self._peek = self.log.head if knows_heads else lambda _: None
        self.router = self._new_router()
        self.edges = [EdgeSide(self, "one"), EdgeSide(self, "two")]
        #: Reads that were made and are not told yet.
        self.read: deque[Callable[[], None]] = deque()

    def _new_router(self) -> RouterCore:
        policies = Policies(tenants=("t",))
        return RouterCore(
            policies,
            window=WINDOW,
            lease_s=1e9,
            delivery_lease_s=1e9,
            outbox_max_bytes=1 << 20,
            peek=self._peek,
            new_id=lambda: "x",
            now_ms=lambda: 0,
        )

    def heads(self) -> dict[bytes, int]:
        """The ends of all logs, by serialized address."""
        return {group(key[4]).SerializeToString(): len(log) for key, log in self.log.topics.items() if key[4]}

    @property
    def clients(self) -> list[Client]:
        return [client for edge in self.edges for client in edge.clients.values()]

    def broadcast(self, name: str) -> None:
        request = BroadcastRequest(address=group(name))
        request.parts.add().text.text = "from a backend"
        self.router.publishing.take(request, Backend())

    def restart_router(self) -> None:
        for edge in self.edges:
            edge.lose(router_notices=True)
        self.router = self._new_router()
        self.read.clear()

    def commit(self) -> bool:
        if not self.router.journal:
            return False
        drafts, settlements = self.router.journal.take()
        self.log.append(drafts)
        self.router.committed(drafts, settlements)
        return True

    def start_reads(self) -> bool:
        reads, self.router.reads[:] = self.router.reads[:], []
        for read in reads:
            if isinstance(read, ReadHeads):
                found: Any = [self.log.head(key) for key in read.topics]
            else:
                assert isinstance(read, ReadPages)
                found = [self.log.page(request) for request in read.requests]
            self.read.append(lambda read=read, found=found: read.done(found))
        return bool(reads)

    def end_read(self) -> bool:
        if not self.read:
            return False
        self.read.popleft()()
        return True

    def settle(self) -> None:
        self.router.settle(0)
        self.router.mail.clear()
        for edge in self.edges:
            edge.settle()

    def run_dry(self) -> None:
        """Link all edges, and let everything happen that is due."""
        for edge in self.edges:
            edge.relink()
        moved = True
        while moved:
            steps = [self.commit, self.start_reads, self.end_read]
            for edge in self.edges:
                steps += [edge.write, edge.arrive_up, edge.arrive_down]
            moved = False
            for step in steps:
                moved |= step()
                self.settle()
