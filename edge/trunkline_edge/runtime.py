"""Runtime of the edge: connects the core to sockets, timers and the link.

Each callback of the event loop enters the core through `EdgeRuntime.step`, which then carries out the
consequences: the writes, then the effects.
"""

from __future__ import annotations

import asyncio
import math
import secrets
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, ParamSpec

from trunkline.v1 import catalogue
from trunkline.v1.catalogue import Refused
from trunkline.v1.edge_service_pb2 import LinkResponse, PoliciesTold
from trunkline_runtime.descriptors import watch
from trunkline_runtime.refusal_log import RefusalLog
from trunkline_runtime.router_addresses import RouterAddresses

from trunkline_edge.admission import Admission
from trunkline_edge.auth.admission_policy import AdmissionPolicy
from trunkline_edge.auth.exposure import ExposureWarning
from trunkline_edge.auth.jwks import Fetch, JwksCache
from trunkline_edge.auth.principal import Principal
from trunkline_edge.auth.request_source import RequestSource
from trunkline_edge.auth.tokens import UnknownKey
from trunkline_edge.core.connection import Connection
from trunkline_edge.core.counters import CLIENT_LOST
from trunkline_edge.core.edge import EdgeCore
from trunkline_edge.core.effects import (
    ApplyPolicy,
    Close,
    FetchUploads,
    PauseReading,
    Ping,
    RejectConnection,
    RejectHandshake,
    ResumeReading,
    VerifyToken,
)
from trunkline_edge.core.handshakes import Handshake
from trunkline_edge.core.limits import EdgeLimits
from trunkline_edge.core.rate_limits import ConnectionRateLimiter, TenantRateLimiter
from trunkline_edge.dialects.dialect import ConnectPlan, HttpRequest, bearer
from trunkline_edge.dialects.registry import DialectRegistry
from trunkline_edge.dialects.tenant_policies import TenantPolicies
from trunkline_edge.settings import EdgeSettings
from trunkline_edge.transport.body_budget import STRANGERS, BodyBudget
from trunkline_edge.transport.client_transport import ClientTransport
from trunkline_edge.transport.connection_budget import ConnectionBudget
from trunkline_edge.transport.engine_io_sessions import EngineIoSessions
from trunkline_edge.transport.peer_address import peer_ip
from trunkline_edge.upload_fetcher import UploadFetcher

P = ParamSpec("P")

#: Refusals of clients that speak no HTTP as the edge does.
PROTOCOL_ERRORS = frozenset(
    {
        catalogue.MALFORMED_REQUEST,
        catalogue.HTTP_VERSION_UNSUPPORTED,
        catalogue.REQUEST_LINE_TOO_LONG,
        catalogue.HEADERS_TOO_LARGE,
    }
)
TICK_S = 1.0
#: Interval of checks during congestion, and between batches of closes when the edge stops.
SHORT_TICK_S = 0.05
#: A client that takes nothing for this long during congestion is closed.
STALL_S = 2.0
#: Time for the last closing handshakes when the edge stops.
CLOSE_WAIT_S = 5.0


class EdgeRuntime:
    """Sockets and timers around one core."""

    def __init__(self, settings: EdgeSettings, fetch: Fetch) -> None:
        """`fetch` returns the JWK Set at a URL."""
        self.settings = settings
        self.routers = RouterAddresses(settings.router)
        self.registry = DialectRegistry(lambda: datetime.now(UTC))
        self.tenants = TenantPolicies()
        self.jwks = JwksCache(fetch, time.monotonic)
        self.core = EdgeCore(_limits(settings))
        self.admission = Admission(self, AdmissionPolicy(self.tenants, self.jwks, time.time))
        self.uploads = UploadFetcher(self)
        self._protocol_errors = RefusalLog("a client broke the protocol")
        self.budget = ConnectionBudget(
            settings.max_connections + settings.max_http_connections,
            settings.max_http_connections,
            self.core.counts,
        )
        self.bodies = BodyBudget()
        self.engine_io = EngineIoSessions(self.tenants)
        self._exposure = ExposureWarning(settings.edge_listen)
        #: Set when the link's writer has something to do.
        self.link_wake = asyncio.Event()
        self._transports: dict[Connection, ClientTransport] = {}
        self._handshakes: dict[Handshake, ClientTransport] = {}
        self._is_applying = False
        self._congestion_over = asyncio.Event()
        self._congestion_check: asyncio.TimerHandle | None = None
        #: Calls `time_passed` of the core.
        self._alarm: asyncio.TimerHandle | None = None
        self._alarm_at = math.inf
        self._appliers: dict[type, Callable[[Any], None]] = {
            Close: self._close,
            RejectConnection: self._reject_connection,
            RejectHandshake: self._reject_handshake,
            PauseReading: self._pause_reading,
            ResumeReading: self._resume_reading,
            Ping: self._ping,
            FetchUploads: self.uploads.begin,
            VerifyToken: lambda effect: self.admission.verify(effect.connection, effect.frame),
            ApplyPolicy: self._apply_policy,
        }

    @property
    def is_stopping(self) -> bool:
        """No further client is accepted."""
        return self.core.sessions.is_draining

    # Steps

    def step(self, operation: Callable[P, object], *args: P.args, **kwargs: P.kwargs) -> None:
        """Run a call that may enter the core, then carry out its consequences. Steps may nest."""
        operation(*args, **kwargs)
        self._apply()

    def _apply(self) -> None:
        """Carry out what the core has decided; see `trunkline_edge.core.edge`.

        If a write or an effect raises, the rest stays for the next step.
        """
        core = self.core
        if self._is_applying:
            return
        self._is_applying = True
        try:
            while core.dirty or core.effects:
                self._write_pending()
                if core.effects:
                    self._apply_effects()
        finally:
            self._is_applying = False
            if core.uplink.is_ready:
                self.link_wake.set()
            due = core.next_due
            if due is not None and due < self._alarm_at:
                self._set_alarm(due)

    def _write_pending(self) -> None:
        core, transports = self.core, self._transports
        while core.dirty:
            dirty = iter(list(core.dirty))
            core.dirty.clear()
            try:
                for connection in dirty:
                    try:
                        transport = transports[connection]
                    except KeyError:
                        # Gone while others were written.
                        continue
                    if (
                        connection.has_backlog
                        or connection.resume_cursor is not None
                        or connection.delivery_reporter is not None
                    ):
                        self._write(connection, transport)
                        continue
                    # Most deliveries take this path, without a call of the core; see `take_pending`.
                    pending, connection.pending = connection.pending, []
                    transport.write(pending[0] if len(pending) == 1 else b"".join(pending))
            finally:
                core.dirty.update(dirty)

    def _write(self, connection: Connection, transport: ClientTransport) -> None:
        core = self.core
        data = core.take_pending(connection, transport.buffered if connection.has_backlog else 0)
        if data is None:
            return
        transport.write(data)
        # A client that has gone has not taken what was just dropped.
        if not transport.is_closing:
            core.written(connection, transport.buffered if connection.has_backlog else 0, len(data))

    def _apply_effects(self) -> None:
        effects = iter(self.core.effects.copy())
        self.core.effects.clear()
        try:
            for effect in effects:
                self._appliers[type(effect)](effect)
        finally:
            self.core.effects[:0] = effects

    # Effects. The client may have gone meanwhile.

    def _close(self, effect: Close) -> None:
        if (transport := self._transports.get(effect.connection)) is not None:
            transport.close(effect.connection.codec.close_code(effect.closing), effect.closing.reason)

    def _reject_connection(self, effect: RejectConnection) -> None:
        if (transport := self._transports.get(effect.connection)) is not None:
            transport.reject_connection(effect.connection.codec, effect.closing, effect.data)

    def _reject_handshake(self, effect: RejectHandshake) -> None:
        if (transport := self._handshakes.get(effect.handshake)) is not None:
            transport.reject(effect.reason)

    def _pause_reading(self, effect: PauseReading) -> None:
        if (transport := self._transports.get(effect.connection)) is not None:
            transport.pause_reading()

    def _resume_reading(self, effect: ResumeReading) -> None:
        if (transport := self._transports.get(effect.connection)) is not None:
            transport.resume_reading()

    def _ping(self, effect: Ping) -> None:
        if (transport := self._transports.get(effect.connection)) is not None:
            transport.ping()

    def _apply_policy(self, effect: ApplyPolicy) -> None:
        self.admission.apply(effect.policy)
        if isinstance(effect.policy, PoliciesTold):
            self._exposure.policies_told(self.tenants)

    # Clients; see ConnectionHandler

    def make_room_for_handshake(self) -> bool:
        """See ConnectionHandler."""
        if self.is_stopping:
            return False
        return self.core.handshakes.has_room or self.budget.displace_silent()

    def begin_handshake(self, transport: ClientTransport) -> None:
        """Start the deadline of a client's handshake."""
        transport.handshake = self.core.handshakes.begin(time.monotonic())
        self._handshakes[transport.handshake] = transport

    def end_handshake(self, transport: ClientTransport) -> None:
        """Stop the deadline. Idempotent."""
        handshake, transport.handshake = transport.handshake, None
        if handshake is not None:
            self.core.handshakes.end(handshake)
            del self._handshakes[handshake]

    def count_refused(self, reason: Refused, transport: asyncio.Transport) -> None:
        """See ConnectionHandler."""
        remote_ip = peer_ip(transport)
        if reason.entry in PROTOCOL_ERRORS:
            self.protocol_broken(remote_ip, str(reason))
        else:
            self.admission.count_refused(reason, remote_ip=remote_ip)

    def body_share(self, tenant: str, request: HttpRequest, source: RequestSource) -> str:
        """See ConnectionHandler."""
        if self.tenants.is_open(tenant, source.is_local):
            return tenant
        try:
            self.admission.policy.verify(tenant, bearer(request.headers))
        except (Refused, UnknownKey):
            return STRANGERS
        return tenant

    def when_tenants_known(self, transport: ClientTransport, then: Callable[[], None]) -> None:
        """See Admission."""
        self.admission.when_tenants_known(transport, then)

    def protocol_broken(self, remote_ip: str, problem: str) -> None:
        """See ConnectionHandler."""
        self.core.counts.protocol_errors += 1
        self._protocol_errors.write(problem=problem, remote_ip=remote_ip)

    def connect(self, transport: ClientTransport, plan: ConnectPlan) -> None:
        """Admit a client and ask the router to accept it. Raises Refused; may also reject it later."""
        self.core.sessions.check_capacity()
        self.admission.connect(transport, plan)

    def admit(
        self,
        transport: ClientTransport,
        plan: ConnectPlan,
        principal: Principal | None,
        limiter: TenantRateLimiter | None,
    ) -> None:
        """See AdmittingRuntime."""
        opened = plan.opened
        opened.connection_id = f"c{secrets.token_hex(12)}"
        opened.remote_ip = transport.remote_ip
        opened.forwarded = transport.source.is_unlike_its_address
        opened.opened_at.GetCurrentTime()
        rollup_ms = self.settings.rollup_ms if plan.rollup_ms is None else plan.rollup_ms
        own_limiter = ConnectionRateLimiter(limiter) if limiter is not None else None
        connection = self.core.sessions.open(plan.codec, opened, rollup_ms, own_limiter, principal)
        self._transports[connection] = transport
        transport.connection = connection
        if transport.handshake is not None:
            transport.handshake.connection = connection
        if transport.buffered:
            self.core.backpressure.write_buffered(connection)
        transport.admitted(limiter.frame_bytes if limiter is not None else self.settings.frame_bytes)

    def move(self, connection: Connection, transport: ClientTransport) -> None:
        """See ConnectionHandler."""
        self._transports[connection] = transport

    def gone(self, connection: Connection, cause: str = CLIENT_LOST) -> None:
        """Remove a connection whose socket is gone; `cause` is how the client ended it."""
        self._transports.pop(connection, None)
        self.step(self.core.gone, connection, cause)

    # The link

    def linked(self) -> None:
        """Declare everything on a new link."""
        self.tenants.begin_sync()
        self.step(self.core.linked, asyncio.get_running_loop().time())

    def link_received(self, batch: LinkResponse) -> None:
        """Handle a batch from the router. Raises KeyError if it names an unknown topic."""
        self.core.link_received(batch, asyncio.get_running_loop().time())
        self._apply()

    def link_lost(self) -> None:
        """Keep everything for the next link."""
        self.step(self.core.link_lost)

    # Congestion

    async def congestion_over(self) -> None:
        """Wait while the clients together are too slow; until then nothing is read from the link."""
        while self.core.backpressure.is_congested:
            self._congestion_over.clear()
            if self._congestion_check is None:
                self._check_congestion_later()
            await self._congestion_over.wait()

    def _check_congestion_later(self) -> None:
        loop = asyncio.get_running_loop()
        self._congestion_check = loop.call_later(SHORT_TICK_S, self._check_congestion)

    def _check_congestion(self) -> None:
        backpressure = self.core.backpressure
        self._congestion_check = None
        backpressure.measure(self._buffered)
        self.step(backpressure.close_stalled, time.monotonic())
        if backpressure.is_congested:
            self._check_congestion_later()
        else:
            self._congestion_over.set()

    def _buffered(self, connection: Connection) -> int:
        transport = self._transports.get(connection)
        return 0 if transport is None else transport.buffered

    # Time

    def _set_alarm(self, due: float) -> None:
        if self._alarm is not None:
            self._alarm.cancel()
        self._alarm_at = due
        self._alarm = asyncio.get_running_loop().call_at(due, self._ring)

    def _ring(self) -> None:
        due, self._alarm_at, self._alarm = self._alarm_at, math.inf, None
        # The loop's timers may be early by its clock's resolution.
        self.step(self.core.time_passed, max(due, asyncio.get_running_loop().time()))

    async def run(self) -> None:
        """Watch the time; returns only by being cancelled."""
        while True:
            await asyncio.sleep(TICK_S)
            self.step(self.core.tick, time.monotonic(), time.time())
            self.admission.forget_gone()
            watch.check()
            self.core.backpressure.measure(self._buffered)

    # Stopping

    async def close_all(self) -> None:
        """Close every client with RESTARTING, spread over the drain time; returns once they are gone.

        Bounded by the drain time and the time for a closing handshake.
        """
        self.core.sessions.is_draining = True
        connections = list(self.core.connections.values())
        batches = max(1, round(self.settings.drain_s / SHORT_TICK_S))
        size = -(-len(connections) // batches)
        for start in range(0, len(connections), size or 1):
            self.step(self._close_restarting, connections[start : start + size])
            await asyncio.sleep(SHORT_TICK_S)
        for _ in range(round(CLOSE_WAIT_S / SHORT_TICK_S)):
            if not self.core.connections:
                break
            await asyncio.sleep(SHORT_TICK_S)

    def _close_restarting(self, connections: list[Connection]) -> None:
        for connection in connections:
            self.core.sessions.close(connection, catalogue.RESTARTING.refused())


def _limits(settings: EdgeSettings) -> EdgeLimits:
    return EdgeLimits(
        frame_bytes=settings.frame_bytes,
        unanswered=settings.unanswered,
        link_window=settings.link_window,
        heartbeat_s=settings.heartbeat_s,
        max_connections=settings.max_connections,
        max_handshakes=settings.max_handshakes,
        handshake_timeout_s=settings.handshake_timeout_s,
        outbox_bytes=settings.outbox_bytes,
        outbox_total_bytes=settings.outbox_total_bytes,
        stall_s=STALL_S,
    )
