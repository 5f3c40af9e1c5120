"""Interface to the edge's runtime, for the transports of its clients."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import ParamSpec, Protocol

from trunkline.v1.catalogue import Refused

from trunkline_edge.auth.request_source import RequestSource
from trunkline_edge.core.connection import Connection
from trunkline_edge.core.edge import EdgeCore
from trunkline_edge.dialects.dialect import ConnectPlan, HttpRequest
from trunkline_edge.dialects.registry import DialectRegistry
from trunkline_edge.dialects.tenant_policies import TenantPolicies
from trunkline_edge.settings import EdgeSettings
from trunkline_edge.transport.body_budget import BodyBudget
from trunkline_edge.transport.client_transport import ClientTransport
from trunkline_edge.transport.connection_budget import ConnectionBudget
from trunkline_edge.transport.engine_io_sessions import EngineIoSessions

P = ParamSpec("P")


class ConnectionHandler(Protocol):
    """Runs the core and admits clients."""

    core: EdgeCore
    settings: EdgeSettings
    registry: DialectRegistry
    tenants: TenantPolicies
    budget: ConnectionBudget
    bodies: BodyBudget
    engine_io: EngineIoSessions

    def step(self, operation: Callable[P, object], *args: P.args, **kwargs: P.kwargs) -> None:
        """Run a call that may enter the core, then carry out its consequences.

        Each callback of the event loop enters the core through this.
        """

    def make_room_for_handshake(self) -> bool:
        """Return True if another client may begin its handshake.

        If there are too many, the client that owes its first message for longest is cut off.
        """

    def begin_handshake(self, transport: ClientTransport) -> None:
        """Start the deadline of a client's handshake."""

    def end_handshake(self, transport: ClientTransport) -> None:
        """Stop the deadline: the handshake was answered, or the client is gone. Idempotent."""

    def count_refused(self, reason: Refused, transport: asyncio.Transport) -> None:
        """Count and log a request that is refused before its tenant is known."""

    def body_share(self, tenant: str, request: HttpRequest, source: RequestSource) -> str:
        """Name the share of memory that buffers a request's body; see BodyBudget.

        That is the tenant's if the caller may connect to it, as far as can be decided at once.
        """

    def when_tenants_known(self, transport: ClientTransport, then: Callable[[], None]) -> None:
        """Call `then` once the tenants are known: at once if they are, never if the client has gone."""

    def connect(self, transport: ClientTransport, plan: ConnectPlan) -> None:
        """Admit a client and ask the router to accept it. Raises Refused; may also reject it later."""

    def move(self, connection: Connection, transport: ClientTransport) -> None:
        """Write to a connection by another transport from here on."""

    def protocol_broken(self, remote_ip: str, problem: str) -> None:
        """Count, and log at a bounded rate, that a client sent what is no TLS, HTTP or WebSocket.

        `problem` describes it and contains nothing that the client sent.
        """

    def gone(self, connection: Connection, cause: str) -> None:
        """Remove a connection whose socket is gone; `cause` is how the client ended it."""
