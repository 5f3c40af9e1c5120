"""An edge core with its clients, and the link between it and a router core."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from trunkline.v1 import catalogue
from trunkline.v1.address_pb2 import TopicPosition
from trunkline.v1.edge_service_pb2 import ConnectionOpened, LinkHello, LinkRequest, LinkResponse
from trunkline_edge.core.edge import EdgeCore
from trunkline_edge.core.effects import RejectConnection
from trunkline_edge.core.limits import EdgeLimits
from trunkline_edge.dialects.codec import StreamingMode
from trunkline_router.core.directory.connections import Link

from tests.edge.core.core_harness import PROTO, group
from tests.edge.core.snapshot_codec import Shown
from tests.wired_cores.client import Client
from tests.wired_cores.dialect_client import ShownClient

if TYPE_CHECKING:
    from tests.wired_cores.harness import World

WINDOW = 2


class EdgeSide:
    """One edge, and the batches in flight on its link."""

    def __init__(self, world: World, name: str) -> None:
        self.world, self.name = world, name
        self.core = EdgeCore(EdgeLimits(unanswered=4))
        self.clients: dict[int, Client] = {}
        self.link: Link | None = None
        self.to_router: deque[LinkRequest] = deque()
        self.to_edge: deque[LinkResponse] = deque()

    def settle(self) -> None:
        """Write to sockets, as the runtime does after each step; clients read."""
        while self.core.dirty or self.core.effects:
            for connection in list(self.core.dirty):
                self.clients[connection.number].take()
                self.core.written(connection, buffered=0, size=0)
            self.core.dirty.clear()
            self._carry_out_effects()
            for client in self.clients.values():
                client.retry()

    def _carry_out_effects(self) -> None:
        for effect in self.core.effects:
            if isinstance(effect, RejectConnection):
                effect.connection.pending.append(effect.data)
                self.clients[effect.connection.number].take()
        self.core.effects.clear()

    def connect(self, user: str, rollup_ms: int, before: Client | None = None) -> Client:
        """Connect a client, perhaps to resume an earlier connection."""
        if isinstance(before, ShownClient):
            return self.show(user, rollup_ms, before.replies, before)
        resume: list[TopicPosition] = before.positions if before is not None else []
        wish = ConnectionOpened(address=group("home"), user=user, remote_ip="127.0.0.1", connection_id="c")
        if resume:
            wish.resume.positions.extend(resume)
        connection = self.core.sessions.open(PROTO, wish, rollup_ms)
        client = self.clients[connection.number] = Client(self.world, self, connection, user, before)
        return client

    def show(
        self, user: str, rollup_ms: int, replies: StreamingMode, before: ShownClient | None = None
    ) -> ShownClient:
        """Connect a client of a dialect. If its user is its own, it receives what it has missed."""
        codec = Shown(replies, reports_delivery=bool(user))
        wish = ConnectionOpened(address=group("home"), user=user, remote_ip="127.0.0.1", connection_id="c")
        wish.echo = True
        wish.resume.delivered = bool(user and before)
        connection = self.core.sessions.open(codec, wish, rollup_ms)
        client = self.clients[connection.number] = ShownClient(self.world, self, connection, user, before)
        return client

    def beat(self) -> None:
        """Send due heartbeats."""
        for client in self.clients.values():
            if not client.is_gone:
                self.core.sessions.send_heartbeat(client.connection)

    def relink(self) -> None:
        """Link the edge again."""
        if self.link is not None:
            return
        hello = LinkHello(edge_id=self.name, boot_id="b", contract_minor=catalogue.CONTRACT_MINOR)
        self.link, _ = self.world.router.link_opened(hello, 0)
        self.core.linked(self.world.now)
        self.core.link_received(LinkResponse(credit=WINDOW), self.world.now)
        self.world.router.link_received(self.link, LinkRequest(credit=WINDOW), self.world.now)

    def lose(self, router_notices: bool) -> None:
        """Break the link and lose everything in flight."""
        if self.link is None:
            return
        if router_notices:
            self.world.router.link_lost(self.link)
        self.link = None
        self.to_router.clear()
        self.to_edge.clear()
        self.core.link_lost()

    def write(self) -> bool:
        """Put everything that may be written in flight; the router writes to a link with mail."""
        if self.link is None:
            return False
        sent = [*iter(self.core.uplink.take, None)]
        self.to_router += sent
        got = [*iter(self.link.outbox.take, None)] if self.link in self.world.mail else []
        self.world.mail.discard(self.link)
        self.to_edge += got
        if got:
            self.world.router.link_drained(self.link)
        self.core.batch_sent()
        return bool(sent or got)

    def arrive_up(self) -> bool:
        """Deliver a batch to the router."""
        if self.link is None or not self.to_router:
            return False
        self.world.router.link_received(self.link, self.to_router.popleft(), self.world.now)
        return True

    def arrive_down(self) -> bool:
        """Deliver a batch to the edge."""
        if not self.to_edge:
            return False
        batch = self.to_edge.popleft()
        self.core.link_received(batch, self.world.now)
        if batch.entries:
            self.core.batch_delivered(1)
        return True

    def ring(self) -> bool:
        """End the windows that are due."""
        due = self.core.next_due
        if due is None or due > self.world.now:
            return False
        self.core.time_passed(self.world.now)
        return True

    def drain(self) -> None:
        """Let every socket take everything written."""
        for client in self.clients.values():
            if client.connection.has_backlog and not client.is_gone:
                self.core.backpressure.caught_up(client.connection)
                self.core.sessions.report_delivery(client.connection)
