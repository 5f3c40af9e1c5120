"""What a client's connection needs of whoever runs it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

from trunkline_edge.core.connection import Connection
from trunkline_edge.core.edge import EdgeCore
from trunkline_edge.dialects.dialect import ConnectPlan
from trunkline_edge.dialects.registry import DialectRegistry
from trunkline_edge.dialects.tenant_policies import TenantPolicies
from trunkline_edge.settings import EdgeSettings

if TYPE_CHECKING:
    from trunkline_edge.transport.client_transport import ClientTransport


class ConnectionHandler(Protocol):
    """Runs the core, and lets clients in."""

    core: EdgeCore
    settings: EdgeSettings
    registry: DialectRegistry
    tenants: TenantPolicies
    #: Clients on their way in, and until when; oldest first.
    handshakes: dict[ClientTransport, float]

    @property
    def takes_handshakes(self) -> bool:
        """There is room for one more client on its way in."""

    def shaking(self, line: ClientTransport) -> None:
        """A client began its handshake."""

    def when_known(self, line: ClientTransport, then: Callable[[], None]) -> None:
        """Call back once it is known what tenants there are; at once if it is, never if the line has gone."""

    def open(self, line: ClientTransport, wish: ConnectPlan) -> None:
        """A client has said where to; the router is asked. Raises Refused where that is of no use."""

    def allows_origin(self, tenant: str, origin: str) -> str:
        """What a response to a web page says in `Access-Control-Allow-Origin`; empty for nothing."""

    def gone(self, connection: Connection, cause: str) -> None:
        """A client's socket is gone; `cause` is how the client ended it."""

    def caught_up(self, connection: Connection) -> None:
        """A client that lagged has taken everything."""

    def settle(self) -> None:
        """Do what the core asks for; called after every call of it."""
