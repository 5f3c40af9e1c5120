"""Runs the core: writes to sockets, watches the time, and holds back who must be held back."""

from __future__ import annotations

import asyncio
import math
import secrets
import time
from collections.abc import Callable
from datetime import UTC, datetime

from trunkline.v1 import catalogue
from trunkline.v1.edge_service_pb2 import LinkResponse

from trunkline_edge.admission import Admission
from trunkline_edge.auth.admission_policy import AdmissionPolicy
from trunkline_edge.auth.jwks import Fetch, JwksCache
from trunkline_edge.auth.principal import Principal
from trunkline_edge.core.congestion import Congestion
from trunkline_edge.core.connection import Connection, ConnectionState
from trunkline_edge.core.counters import CLIENT_LOST
from trunkline_edge.core.edge import EdgeCore
from trunkline_edge.core.limits import EdgeLimits
from trunkline_edge.core.rate_limits import ConnectionRateLimiter, TenantRateLimiter
from trunkline_edge.core.read_control import TURNS_PER_S
from trunkline_edge.dialects.dialect import ConnectPlan
from trunkline_edge.dialects.registry import DialectRegistry
from trunkline_edge.dialects.tenant_policies import TenantPolicies
from trunkline_edge.settings import EdgeSettings
from trunkline_edge.transport.client_transport import ClientTransport

TICK_S = 1.0
#: How often buffers are looked at while clients together take less than comes.
CONGESTED_TICK_S = 0.05
#: While congested, a client that takes nothing for this long is closed.
STALL_S = 2.0
#: How long the last closing handshakes may take when the edge stops.
CLOSE_WAIT_S = 5.0


class EdgeRuntime:
    """The connections and timers around one core."""

    def __init__(self, settings: EdgeSettings, fetch: Fetch) -> None:
        """`fetch` gets a JWK Set by its URL."""
        self.settings = settings
        self.registry = DialectRegistry(lambda: datetime.now(UTC))
        self.tenants = TenantPolicies()
        self.jwks = JwksCache(fetch, time.monotonic)
        self.entrance = Admission(self, AdmissionPolicy(self.tenants, self.jwks, time.time), self._admitted)
        self.core = EdgeCore(
            EdgeLimits(
                frame_bytes=settings.frame_bytes,
                unanswered=settings.unanswered,
                link_window=settings.link_window,
                heartbeat_s=settings.heartbeat_s,
            )
        )
        self.congestion = Congestion(settings.outbox_total_bytes, STALL_S)
        self.is_stopping = False
        #: Set when the link's writer has something to do.
        self.link_wake = asyncio.Event()
        #: Clients on their way in, and until when; oldest first.
        self.handshakes: dict[ClientTransport, float] = {}
        #: Connections by when their heartbeat is due.
        self._rounds: list[set[Connection]] = [set() for _ in range(settings.heartbeat_s)]
        #: Set once clients have caught up.
        self._room = asyncio.Event()
        #: A look at the buffers is due.
        self._looking = False
        #: Some that sent too fast are to have their turn.
        self._turning = False
        #: Rings when the next window of deltas ends.
        self._alarm: asyncio.TimerHandle | None = None
        self._alarm_at = math.inf

    # After each step of the core

    def settle(self) -> None:
        """Do what the core asks for; to be called after every call of it, before the next await."""
        core = self.core
        while core.dirty:
            dirty = list(core.dirty)
            core.dirty.clear()
            self._write(dirty)
        if core.policies or core.proofs.to_verify or core.proofs.renewed:
            self.entrance.settle()
        reading = core.reading
        if reading.hold or reading.release:
            for connection in reading.hold:
                connection.socket.transport.pause_reading()
            for connection in reading.release:
                connection.socket.transport.resume_reading()
            reading.hold.clear()
            reading.release.clear()
            if reading.has_resting and not self._turning:
                self._turn_later()
        if core.uplink.is_ready:
            self.link_wake.set()
        due = core.next_due
        if due is not None and due < self._alarm_at:
            self._set_alarm(due)

    def _write(self, dirty: list[Connection]) -> None:
        for connection in dirty:
            line: ClientTransport = connection.socket
            pending, connection.pending = connection.pending, []
            data = pending[0] if len(pending) == 1 else b"".join(pending)
            if connection.lags and connection.state is ConnectionState.OPEN:
                # What gathers counts as if it were written.
                lag_bytes = self._report(connection)
                if lag_bytes + len(data) - self._exempt(connection, data) > self.settings.outbox_bytes:
                    self.core.counts.took_back(line.frames_in(data))
                    self._close_slow(connection)
                    continue
            closing = connection.closing
            if closing is not None and line.refuse_by_http(connection.codec, closing):
                continue
            line.write(data if connection.standing is None else connection.marked(data))
            if connection.lags and connection.state is ConnectionState.OPEN:
                connection.exempt_bytes = self._exempt(connection, data)
                self._report(connection)
            elif connection.delivered is not None and not line.transport.is_closing():
                # A client that has gone has not taken what was dropped just now.
                self.core.taken(connection)
            if closing is not None:
                line.close(connection.codec.close_code(closing), closing.reason)

    def _exempt(self, connection: Connection, data: bytes) -> int:
        """What does not count as buffered: the largest piece that a client is still taking, or is given.

        It is one that the outbox has hardly room for at all, such as a picture. Who takes its time over
        that is not slow yet, and must not be closed by a small frame behind it.
        """
        large = len(data) if 2 * len(data) > self.settings.outbox_bytes else 0
        return max(large, connection.exempt_bytes)

    def _report(self, connection: Connection) -> int:
        lag_bytes: int = connection.socket.buffered + self.core.gathered_bytes(connection)
        self.congestion.report(connection, lag_bytes)
        return lag_bytes

    def _close_slow(self, connection: Connection) -> None:
        """What is buffered stays in order; the close comes after it, or an abort if that is not read."""
        self.congestion.gone(connection)
        self.core.close_slow(connection)

    def caught_up(self, connection: Connection) -> None:
        """A client that lagged has taken everything."""
        connection.exempt_bytes = 0
        self.congestion.report(connection, 0)
        self.core.caught_up(connection)
        self.core.taken(connection)
        self.settle()

    # Clients coming and going

    @property
    def takes_handshakes(self) -> bool:
        """There is room for one more client on its way in."""
        return len(self.handshakes) < self.settings.max_handshakes and not self.is_stopping

    def shaking(self, line: ClientTransport) -> None:
        """A client began its handshake."""
        self.handshakes[line] = time.monotonic() + self.settings.handshake_timeout_s

    def open(self, line: ClientTransport, wish: ConnectPlan) -> None:
        """A client has said where to; the router is asked. Raises Refused where that is of no use."""
        self._check_room()
        self.entrance.enter(line, wish)

    def _check_room(self) -> None:
        """Raises Refused where no more clients are taken."""
        if self.is_stopping:
            raise catalogue.RESTARTING.refused()
        if len(self.core.connections) >= self.settings.max_connections:
            raise catalogue.OVERLOADED.refused(problem="the edge has as many connections as it may have")

    def _admitted(
        self,
        line: ClientTransport,
        wish: ConnectPlan,
        bearer: Principal | None,
        pace: TenantRateLimiter | None,
    ) -> None:
        """A client may come in as far as the edge can tell. Raises Refused."""
        # Some time may have passed since it was looked at first.
        self._check_room()
        opened = wish.opened
        opened.connection_id = f"c{secrets.token_hex(12)}"
        opened.remote_ip = line.remote_ip
        opened.forwarded = line.is_forwarded
        opened.opened_at.GetCurrentTime()
        rollup_ms = self.settings.rollup_ms if wish.rollup_ms is None else wish.rollup_ms
        own_pace = ConnectionRateLimiter(pace) if pace is not None else None
        connection = self.core.open(line, wish.codec, opened, rollup_ms, own_pace)
        connection.bearer = bearer
        connection.lags = line.buffered > 0
        line.connection = connection
        self._rounds[connection.number % len(self._rounds)].add(connection)
        line.admitted(pace.frame_bytes if pace is not None else self.settings.frame_bytes)

    def gone(self, connection: Connection, cause: str = CLIENT_LOST) -> None:
        """A client's socket is gone; `cause` is how the client ended it."""
        self._rounds[connection.number % len(self._rounds)].discard(connection)
        self.congestion.gone(connection)
        self.core.gone(connection, cause)
        self.settle()

    def when_known(self, line: ClientTransport, then: Callable[[], None]) -> None:
        """See Host."""
        self.entrance.when_known(line, then)

    def allows_origin(self, tenant: str, origin: str) -> str:
        """See Host."""
        return self.entrance.admission.allowed_origin(tenant, origin)

    # The link

    def linked(self) -> None:
        """A link is up."""
        self.tenants.begin_sync()
        self.core.linked()

    async def room(self) -> None:
        """Wait while clients together take less than comes; until then nothing is read off the link."""
        while self.congestion.is_congested:
            self._room.clear()
            if not self._looking:
                self._look_later()
            await self._room.wait()

    def link_received(self, batch: LinkResponse) -> None:
        """A batch came from the router. Raises KeyError where it names an unknown topic."""
        self.core.link_received(batch, asyncio.get_running_loop().time())
        self.settle()

    def link_lost(self) -> None:
        """The link broke."""
        self.core.link_lost()
        self.settle()

    def _look_later(self) -> None:
        self._looking = True
        asyncio.get_running_loop().call_later(CONGESTED_TICK_S, self._look)

    def _measure(self) -> None:
        for connection in self.congestion.lagging:
            self._report(connection)

    def _look(self) -> None:
        """Congested: see whether clients have caught up, and close those that take nothing."""
        self._looking = False
        congestion = self.congestion
        self._measure()
        if congestion.is_congested:
            for connection in congestion.stalled(time.monotonic()):
                self._close_slow(connection)
            self.settle()
        if congestion.is_congested:
            self._look_later()
        else:
            congestion.eased()
            self._room.set()

    # Time

    def _set_alarm(self, due: float) -> None:
        if self._alarm is not None:
            self._alarm.cancel()
        self._alarm_at = due
        self._alarm = asyncio.get_running_loop().call_at(due, self._rang)

    def _rang(self) -> None:
        """A window of deltas is over."""
        due, self._alarm_at, self._alarm = self._alarm_at, math.inf, None
        # The loop's timers may be early by its clock's resolution.
        self.core.flush_due(max(due, asyncio.get_running_loop().time()))
        self.settle()

    def _turn_later(self) -> None:
        self._turning = True
        asyncio.get_running_loop().call_later(1 / TURNS_PER_S, self._turn)

    def _turn(self) -> None:
        """Some that sent too fast have rested."""
        self._turning = False
        self.core.rested(asyncio.get_running_loop().time())
        self.settle()
        if self.core.reading.has_resting and not self._turning:
            self._turn_later()

    async def run(self) -> None:
        """Watch the time; returns only by being cancelled."""
        turn = 0
        while True:
            await asyncio.sleep(TICK_S)
            turn = (turn + 1) % len(self._rounds)
            for connection in self.core.heartbeat(list(self._rounds[turn])):
                connection.socket.ping()
                self.core.beat(connection)
            self.entrance.tick()
            self._end_handshakes(time.monotonic())
            self._measure()
            self.settle()

    def _end_handshakes(self, now: float) -> None:
        for line, deadline in list(self.handshakes.items()):
            if deadline > now:
                break
            del self.handshakes[line]
            limit = f"{self.settings.handshake_timeout_s:g}"
            reason = catalogue.HANDSHAKE_TIMEOUT.refused(limit_s=limit)
            if not self.core.uplink.is_up:
                reason = catalogue.ROUTER_UNAVAILABLE.refused()
            if line.connection is None:
                line.refuse(reason)
            else:
                self.core.close(line.connection, reason)

    async def close_all(self) -> None:
        """Close every client with RESTARTING, spread over the drain time; returns once they are gone.

        Bounded by the drain time and the time for a closing handshake.
        """
        self.is_stopping = True
        reason = catalogue.RESTARTING.refused()
        connections = list(self.core.connections.values())
        steps = max(1, round(self.settings.drain_s / CONGESTED_TICK_S))
        share = -(-len(connections) // steps)
        for start in range(0, len(connections), share or 1):
            for connection in connections[start : start + share]:
                self.core.close(connection, reason)
            self.settle()
            await asyncio.sleep(CONGESTED_TICK_S)
        for _ in range(round(CLOSE_WAIT_S / CONGESTED_TICK_S)):
            if not self.core.connections:
                break
            await asyncio.sleep(CONGESTED_TICK_S)
