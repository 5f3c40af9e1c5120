"""Admission of clients: waits for tenants and signing keys, then applies the admission policy."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Protocol

from trunkline.v1 import catalogue
from trunkline.v1.catalogue import Refused
from trunkline.v1.edge_service_pb2 import ConnectionOpened, PoliciesTold, TenantGone, TenantPolicy
from trunkline.v1.frame_pb2 import AuthFrame
from trunkline_runtime.refusal_log import RefusalLog

from trunkline_edge.auth.admission_policy import AdmissionPolicy, ConnectAttempt
from trunkline_edge.auth.claims import is_id
from trunkline_edge.auth.principal import Principal
from trunkline_edge.auth.tokens import UnknownKey
from trunkline_edge.core.connection import Connection, ConnectionState
from trunkline_edge.core.edge import EdgeCore
from trunkline_edge.core.rate_limits import TenantRateLimiter
from trunkline_edge.dialects.dialect import ConnectPlan
from trunkline_edge.dialects.tenant_policies import TenantPolicies
from trunkline_edge.transport.client_transport import ClientTransport

#: Longest time until a tenant that was just declared is known to every edge.
DECLARATION_DELAY_S = 0.5


class AdmittingRuntime(Protocol):
    """Runtime that admission works for."""

    core: EdgeCore
    tenants: TenantPolicies

    def step(self, operation: Callable[[], object]) -> None:
        """Run a call that may enter the core, then carry out its consequences."""

    def admit(
        self,
        transport: ClientTransport,
        plan: ConnectPlan,
        principal: Principal | None,
        limiter: TenantRateLimiter | None,
    ) -> None:
        """Open the connection of a client that may connect as far as the edge can tell. Raises Refused."""


class Admission:
    """Admits clients and verifies refreshed tokens.

    A client waits only if the tenants are not known yet, or its tenant may have been declared a moment ago,
    or its token names an unknown key. The handshake's deadline bounds each wait.
    """

    def __init__(self, runtime: AdmittingRuntime, policy: AdmissionPolicy) -> None:
        self._runtime = runtime
        self.policy = policy
        #: Clients that came before the tenants were known.
        self._early: list[tuple[ClientTransport, Callable[[], None]]] = []
        #: Clients of unknown tenants, by tenant; each for DECLARATION_DELAY_S at most.
        self._of_unknown_tenants: dict[str, dict[ClientTransport, ConnectPlan]] = {}
        #: Set, and replaced, when a policy was applied.
        self._policies_changed = asyncio.Event()
        self._fetches: set[asyncio.Task[None]] = set()
        self._refusals = RefusalLog("a client was refused")

    # Connecting

    def when_tenants_known(self, transport: ClientTransport, then: Callable[[], None]) -> None:
        """Call `then` once the tenants are known: at once if they are, never if the client has gone."""
        if self._runtime.tenants.are_known:
            then()
        else:
            self._early.append((transport, then))

    def connect(self, transport: ClientTransport, plan: ConnectPlan) -> None:
        """Admit a client, now or after a wait. Raises Refused, or rejects it later."""
        if not self._runtime.tenants.are_known:
            self.when_tenants_known(transport, lambda: self._retry(transport, plan))
            return
        name = plan.opened.address.tenant
        if is_id(name) and self._runtime.tenants.policy(name) is None:
            self._of_unknown_tenants.setdefault(name, {})[transport] = plan
            loop = asyncio.get_running_loop()
            loop.call_later(DECLARATION_DELAY_S, self._runtime.step, lambda: self._give_up(name, transport))
            return
        try:
            self._admit(transport, plan)
        except UnknownKey:
            self._fetch_keys(name, lambda: self._retry(transport, plan, keys_fetched=True))

    def _admit(self, transport: ClientTransport, plan: ConnectPlan) -> None:
        tenant = plan.opened.address.tenant
        attempt = ConnectAttempt(plan.token, transport.source, plan.may_be_foreign, plan.is_visitor)
        try:
            now = time.monotonic()
            principal = self.policy.admit(attempt, plan.opened, plan.names_user, now, plan.chat)
        except Refused as reason:
            protocol = plan.opened.protocol
            self.count_refused(reason, tenant=tenant, remote_ip=transport.remote_ip, protocol=protocol)
            raise
        self._runtime.admit(transport, plan, principal, self.policy.rate_limiter(tenant))

    def count_refused(self, reason: Refused, **fields: str) -> None:
        """Count a refused client, and log it with `fields`; the log is throttled."""
        code = reason.entry.code
        self._runtime.core.counts.refused_by[code] += 1
        self._refusals.write(code=code, problem=str(reason), **fields)

    def _retry(self, transport: ClientTransport, plan: ConnectPlan, keys_fetched: bool = False) -> None:
        """Admit or reject a client after its wait, unless it has gone."""
        if not transport.is_waiting:
            return
        try:
            self._admit(transport, plan)
        except UnknownKey as unknown:
            if keys_fetched:
                transport.reject(unknown.refused())
            else:
                tenant = plan.opened.address.tenant
                self._fetch_keys(tenant, lambda: self._retry(transport, plan, keys_fetched=True))
        except Refused as reason:
            transport.reject(reason)

    def _give_up(self, name: str, transport: ClientTransport) -> None:
        """Stop waiting for a tenant's declaration: the policy rejects its client."""
        waiting = self._of_unknown_tenants.get(name, {})
        plan = waiting.pop(transport, None)
        if not waiting:
            self._of_unknown_tenants.pop(name, None)
        if plan is not None:
            self._retry(transport, plan)

    def forget_gone(self) -> None:
        """Drop the clients that left or timed out before the tenants were known; call once a second."""
        self._early = [early for early in self._early if early[0].is_waiting]

    def _fetch_keys(self, tenant: str, then: Callable[[], None]) -> None:
        async def fetch() -> None:
            await self.policy.fetch_keys(tenant)
            self._runtime.step(then)

        task = asyncio.get_running_loop().create_task(fetch())
        self._fetches.add(task)
        task.add_done_callback(self._fetches.discard)

    # Calls over HTTP

    async def verify_caller(self, tenant: str, token: str) -> Principal:
        """Verify the token of a call, after the same waits as for a client that connects. Raises Refused."""
        await self._wait_for_policy(tenant)
        try:
            return self.policy.verify(tenant, token)
        except UnknownKey:
            await self.policy.fetch_keys(tenant)
        try:
            return self.policy.verify(tenant, token)
        except UnknownKey as unknown:
            raise unknown.refused() from None

    async def _wait_for_policy(self, tenant: str) -> None:
        """Wait for a tenant that may have been declared a moment ago, for DECLARATION_DELAY_S at most.

        Raises Refused ROUTER_UNAVAILABLE if tenants are not known then.
        """
        tenants = self._runtime.tenants
        try:
            async with asyncio.timeout(DECLARATION_DELAY_S):
                while is_id(tenant) and tenants.policy(tenant) is None:
                    await self._policies_changed.wait()
        except TimeoutError:
            if not tenants.are_known:
                raise catalogue.ROUTER_UNAVAILABLE.refused() from None

    # Policies

    def apply(self, policy: TenantPolicy | TenantGone | PoliciesTold) -> None:
        """Apply a policy from the router; connections whose key was revoked are closed."""
        self._apply(policy)
        changed, self._policies_changed = self._policies_changed, asyncio.Event()
        changed.set()

    def _apply(self, policy: TenantPolicy | TenantGone | PoliciesTold) -> None:
        if isinstance(policy, TenantPolicy):
            revoked = self.policy.put_tenant(policy)
            self._runtime.core.sessions.close_revoked(policy.tenant, revoked)
            for transport, plan in self._of_unknown_tenants.pop(policy.tenant, {}).items():
                self._retry(transport, plan)
        elif isinstance(policy, TenantGone):
            self.policy.remove_tenant(policy.tenant)
        else:
            self.policy.end_sync()
            early, self._early = self._early, []
            for transport, then in early:
                if transport.is_waiting:
                    then()

    # Refreshed tokens

    def verify(self, connection: Connection, frame: AuthFrame, keys_fetched: bool = False) -> None:
        """Verify the token with which a client replaces its own, after fetching its key if necessary."""
        if connection.state is not ConnectionState.OPEN:
            return
        core, opened = self._runtime.core, connection.parse_opened()
        try:
            principal = self.policy.verify(connection.tenant, frame.token)
            _check_same_user(connection, principal, opened)
        except Refused as reason:
            core.token_refresh.invalid(connection, reason, frame.id)
        except UnknownKey as unknown:
            if keys_fetched:
                core.token_refresh.invalid(connection, unknown.refused(), frame.id)
            else:
                self._fetch_keys(connection.tenant, lambda: self.verify(connection, frame, keys_fetched=True))
        else:
            core.token_refresh.verified(connection, principal, principal.grants(), frame.id)


def _check_same_user(connection: Connection, principal: Principal, opened: ConnectionOpened) -> None:
    """Raises Refused FORBIDDEN unless a new token is of the same user and allows the connection."""
    before = connection.principal
    assert isinstance(before, Principal)
    if principal.user != before.user:
        raise catalogue.FORBIDDEN.refused(
            problem="the token belongs to another user; open a new connection with it"
        )
    principal.authorize(opened, names_user=False)
