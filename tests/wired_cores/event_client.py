"""A client of an event stream: only listens, and resumes by the last event's id."""

from __future__ import annotations

from typing import TYPE_CHECKING

from trunkline.v1.frame_pb2 import ServerFrame
from trunkline_edge.core.connection import Connection
from trunkline_edge.dialects.dialect import ConnectRequest
from trunkline_edge.dialects.native.events import LAST_EVENT_ID, NativeEvents, connect
from trunkline_edge.dialects.tenant_policies import TenantPolicies

from tests.support.event_source import EventReader
from tests.wired_cores.client import Client

if TYPE_CHECKING:
    from tests.wired_cores.edge import EdgeSide
    from tests.wired_cores.harness import World


class HexEvents(NativeEvents):
    """Event streams whose data are frames of the contract, readable by tests."""

    def encode(self, frame: ServerFrame) -> bytes:
        return b"event: %b\ndata: %b\n\n" % (
            (frame.WhichOneof("frame") or "").encode(),
            frame.SerializeToString().hex().encode(),
        )


HEX = HexEvents()


class Listener(Client):
    """Records what it receives, and checks that the edge resumes exactly at the last id."""

    def __init__(
        self, world: World, edge: EdgeSide, connection: Connection, user: str, before: Listener | None
    ) -> None:
        super().__init__(world, edge, connection, user, before)
        self.reader = EventReader()
        self.reader.last_id = before.reader.last_id if before else ""
        #: Where it is to go on.
        self.stood = dict(self.left)
        self.recovered = False

    @property
    def is_open(self) -> bool:
        """The client never sends."""
        return False

    def take(self) -> None:
        """Read everything written, as the runtime writes it."""
        for event in self.reader.feed(self.take_pending()):
            frame = ServerFrame.FromString(bytes.fromhex(event.data))
            assert not self.closed_for, f"{event.type} after closing"
            self._receive(event.type, getattr(frame, event.type))
            if event.type == "connected" and frame.connected.recovered:
                self._goes_on()

    def _goes_on(self) -> None:
        self.recovered = True
        assert {key: place.start for key, place in self.topics.items()} == self.stood


def listen(edge: EdgeSide, user: str, rollup_ms: int, before: Listener | None = None) -> Listener:
    """Connect a client of an event stream, perhaps to resume an earlier one."""
    query = [("tenant", "t"), ("agent", "a"), ("platform", "web"), ("conversation", "group:home")]
    query += [("user", user)] if user else []
    headers = {LAST_EVENT_ID: before.reader.last_id} if before and before.reader.last_id else {}
    opened = connect(ConnectRequest({}, query, headers, None, TenantPolicies())).opened
    opened.connection_id, opened.remote_ip = "c", "127.0.0.1"
    connection = edge.core.sessions.open(HEX, opened, rollup_ms)
    client = Listener(edge.world, edge, connection, user, before)
    edge.clients[connection.number] = client
    return client
