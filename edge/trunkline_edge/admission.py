"""Lets clients in, and out again when their tokens are over."""

from __future__ import annotations

import asyncio
import heapq
import time
from collections.abc import Callable

from trunkline.v1 import catalogue
from trunkline.v1.catalogue import Refused
from trunkline.v1.edge_service_pb2 import ConnectionOpened, TenantGone, TenantPolicy
from trunkline.v1.frame_pb2 import AuthFrame
from trunkline_runtime.refusal_log import RefusalLog

from trunkline_edge.auth.admission_policy import AdmissionPolicy, ConnectAttempt
from trunkline_edge.auth.claims import is_id
from trunkline_edge.auth.principal import Principal
from trunkline_edge.auth.tokens import UnknownKey
from trunkline_edge.core.connection import Connection, ConnectionState
from trunkline_edge.core.rate_limits import TenantRateLimiter
from trunkline_edge.dialects.dialect import ConnectPlan
from trunkline_edge.transport.client_transport import ClientTransport
from trunkline_edge.transport.connection_handler import ConnectionHandler

#: How long it takes at most for what is declared to come to an edge.
NEWS_S = 0.5

#: A client may come in, as far as the edge can tell: who it is, and what it may send. Raises Refused.
Admitted = Callable[[ClientTransport, ConnectPlan, Principal | None, TenantRateLimiter | None], None]


class Admission:
    """What the shell does about tenants and tokens.

    No client waits for a key to be fetched but one whose token names a key that is not known; it waits for
    no longer than a handshake may take.
    """

    def __init__(self, host: ConnectionHandler, admission: AdmissionPolicy, admitted: Admitted) -> None:
        self._host = host
        self._admitted = admitted
        self.admission = admission
        #: Clients that came before it was known what tenants there are.
        self._early: list[tuple[ClientTransport, Callable[[], None]]] = []
        #: When tokens of connections expire, by the wall clock; what is no longer so is passed over.
        self._expiries: list[tuple[float, int, Principal]] = []
        self._fetching: set[asyncio.Task[None]] = set()
        #: Clients of tenants that nobody has told of, by tenant; each for NEWS_S at most.
        self._strangers: dict[str, dict[ClientTransport, ConnectPlan]] = {}
        self._refusals = RefusalLog("a client was refused")

    # Coming in

    def when_known(self, line: ClientTransport, then: Callable[[], None]) -> None:
        """See Host."""
        if self._host.tenants.are_known:
            then()
        else:
            self._early.append((line, then))

    def enter(self, line: ClientTransport, wish: ConnectPlan) -> None:
        """A client wants to connect. Raises Refused, or refuses it later."""
        if not self._host.tenants.are_known:
            self.when_known(line, lambda: self._enter_late(line, wish))
            return
        name = wish.opened.address.tenant
        if is_id(name) and self._host.tenants.policy(name) is None:
            # It may have been declared just now.
            self._strangers.setdefault(name, {})[line] = wish
            asyncio.get_running_loop().call_later(NEWS_S, self._not_told_of, name, line)
            return
        try:
            self._enter(line, wish)
        except UnknownKey:
            self._fetch(wish.opened.address.tenant, lambda: self._enter_late(line, wish, is_last=True))

    def _enter(self, line: ClientTransport, wish: ConnectPlan) -> None:
        visitor = ConnectAttempt(wish.token, line.origin, line.is_local)
        try:
            bearer = self.admission.admit(visitor, wish.opened, wish.names_user, time.monotonic())
        except Refused as reason:
            self._host.core.counts.refused_by[reason.entry.code] += 1
            self._refusals.say(
                tenant=wish.opened.address.tenant,
                code=reason.entry.code,
                problem=str(reason),
                remote_ip=line.remote_ip,
                protocol=wish.opened.protocol,
            )
            raise
        self._admitted(line, wish, bearer, self.admission.rate_limiter(wish.opened.address.tenant))
        if bearer is not None and line.connection is not None:
            self._note_expiry(line.connection)

    def _enter_late(self, line: ClientTransport, wish: ConnectPlan, is_last: bool = False) -> None:
        """What was waited for is there: the tenants, or (`is_last`) keys, as far as they can be had."""
        if line not in self._host.handshakes or line.connection is not None:
            return
        try:
            self._enter(line, wish)
        except UnknownKey as unknown:
            if is_last:
                line.refuse(unknown.refused())
            else:
                self._fetch(wish.opened.address.tenant, lambda: self._enter_late(line, wish, is_last=True))
        except Refused as reason:
            line.refuse(reason)

    def _told_of(self, name: str) -> None:
        for line, wish in self._strangers.pop(name, {}).items():
            self._enter_late(line, wish)

    def _not_told_of(self, name: str, line: ClientTransport) -> None:
        wish = self._strangers.get(name, {}).pop(line, None)
        if not self._strangers.get(name):
            self._strangers.pop(name, None)
        if wish is not None:
            self._enter_late(line, wish)
            self._host.settle()

    def _fetch(self, tenant: str, then: Callable[[], None]) -> None:
        async def fetch() -> None:
            await self.admission.fetch_keys(tenant)
            then()
            self._host.settle()

        task = asyncio.get_running_loop().create_task(fetch())
        self._fetching.add(task)
        task.add_done_callback(self._fetching.discard)

    # What the core asks for

    def settle(self) -> None:
        """Deal with what the router has told of tenants, and with tokens that clients have shown."""
        core = self._host.core
        policies = core.policies.copy()
        core.policies.clear()
        for told in policies:
            if isinstance(told, TenantPolicy):
                self._end_those_of(told.tenant, self.admission.put_tenant(told))
                self._told_of(told.tenant)
            elif isinstance(told, TenantGone):
                self.admission.remove_tenant(told.tenant)
            else:
                self.admission.end_sync()
                self._let_early_in()
        shown, core.proofs.to_verify = core.proofs.to_verify, []
        for connection, frame in shown:
            self._renew(connection, frame)
        for connection in core.proofs.renewed:
            self._note_expiry(connection)
        core.proofs.renewed.clear()
        if core.dirty or core.uplink.is_ready:
            self._host.settle()

    def _let_early_in(self) -> None:
        early, self._early = self._early, []
        for line, then in early:
            if line in self._host.handshakes:
                then()

    def _renew(self, connection: Connection, frame: AuthFrame, is_last: bool = False) -> None:
        """A client has shown another token; `is_last`: what keys there are for it were fetched."""
        opened = ConnectionOpened.FromString(connection.opened)
        core, tenant = self._host.core, opened.address.tenant
        try:
            bearer = self.admission.verify(tenant, frame.token)
            self._check_same(connection, bearer, opened)
        except Refused as reason:
            core.refuse(connection, reason, frame.id)
        except UnknownKey as unknown:
            if is_last:
                core.refuse(connection, unknown.refused(), frame.id)
            else:
                self._fetch(tenant, lambda: self._renew_late(connection, frame))
        else:
            core.proofs.proven(connection, bearer, bearer.grants(), frame.id)

    def _renew_late(self, connection: Connection, frame: AuthFrame) -> None:
        if connection.state is ConnectionState.OPEN:
            self._renew(connection, frame, is_last=True)

    def _check_same(self, connection: Connection, bearer: Principal, opened: ConnectionOpened) -> None:
        before: Principal = connection.bearer
        if bearer.user != before.user:
            raise catalogue.FORBIDDEN.refused(problem="the token is another user's; connect anew with it")
        bearer.authorize(opened, names_user=False)

    # Going out

    def _note_expiry(self, connection: Connection) -> None:
        bearer: Principal = connection.bearer
        if bearer.expires_at_s is not None:
            heapq.heappush(self._expiries, (bearer.expires_at_s, connection.number, bearer))

    def tick(self) -> None:
        """Close the connections whose tokens have expired; to be called every second."""
        self._early = [early for early in self._early if early[0] in self._host.handshakes]
        core, now_s = self._host.core, time.time()
        while self._expiries and self._expiries[0][0] <= now_s:
            _, number, bearer = heapq.heappop(self._expiries)
            connection = core.connections.get(number)
            if connection is not None and connection.bearer is bearer:
                core.close(connection, catalogue.TOKEN_EXPIRED.refused())

    def _end_those_of(self, tenant: str, keys: frozenset[str]) -> None:
        """Close the tenant's connections whose tokens were verified with keys that are gone."""
        if not keys:
            return
        core = self._host.core
        for connection in list(core.connections.values()):
            bearer: Principal | None = connection.bearer
            if bearer is not None and bearer.key in keys:
                address = ConnectionOpened.FromString(connection.opened).address
                if address.tenant == tenant:
                    core.close(connection, catalogue.TOKEN_REVOKED.refused())
