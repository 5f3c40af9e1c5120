"""Callers and their permissions: the operator, holders of API keys, edges, clients, and
unauthenticated callers."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum

from trunkline.v1 import catalogue
from trunkline.v1.access_pb2 import RIGHT_UNSPECIFIED, SCOPE_BROADCAST, SCOPE_LINK, SCOPE_OPERATOR, Right
from trunkline_runtime.loopback import is_loopback
from trunkline_runtime.tenant_policy import check_open_to_call, not_for_clients, scope_name

from trunkline_router.core.tenants.tenant import Tenant
from trunkline_router.core.tenants.token_client import TokenClient


class CallerKind(Enum):
    """Credentials that a caller has presented."""

    #: The operator's key.
    OPERATOR = "operator"
    #: An API key.
    KEY = "key"
    #: The credentials of an edge.
    EDGE = "edge"
    #: A client's token, verified by an edge that calls for its holder.
    CLIENT = "client"
    #: None.
    ANYBODY = "anybody"


@dataclass(frozen=True, slots=True)
class Caller:
    """The authenticated caller of an RPC."""

    kind: CallerKind
    #: Tenant of the API key, or of the client that an edge calls for; empty for other callers.
    tenant: str = ""
    #: Permissions within that tenant.
    scopes: frozenset[int] = frozenset()
    key_id: str = ""
    #: The caller is on this machine, or on the machine of the edge that forwards its call.
    is_local: bool = False
    #: The client that an EDGE calls for has presented the secret that the tenant's clients share.
    by_secret: bool = False
    #: Set exactly for CLIENT.
    client: TokenClient | None = None
    #: The client that an EDGE acts for has this token, which may be revoked, and manages the dialect whose
    #: route makes the call.
    manager: TokenClient | None = None
    #: Names in the certificate of an EDGE, which bind its id; empty if it may use any id.
    edge_names: tuple[str, ...] = ()

    @property
    def token_client(self) -> TokenClient | None:
        """The client whose token the call is made with, also if an edge acts for it; None without a token."""
        return self.client or self.manager

    def authorize(
        self,
        scope: int,
        name: str,
        tenant: Tenant | None,
        client_right: Right.ValueType = RIGHT_UNSPECIFIED,
    ) -> None:
        """Raise Refused unless the caller may call an RPC of this scope for the tenant called `name`.

        A client needs the right instead of the scope; it may call no RPC without one. `tenant` is the
        tenant of that name, if there is one; RPCs that name no tenant pass "". Raises UNAUTHORIZED if
        credentials are missing, FORBIDDEN if they do not suffice. Neither reveals to an
        authenticated caller whether another tenant exists. The operator and unauthenticated callers pass if
        there is no such tenant; the RPC then reports that.
        """
        if scope == SCOPE_LINK:
            self._authorize_link()
        elif not SCOPE_BROADCAST <= scope <= SCOPE_OPERATOR:
            raise catalogue.FORBIDDEN.refused(problem="no caller may do this")
        elif self.kind is CallerKind.OPERATOR:
            return
        elif self.client is not None:
            if client_right == RIGHT_UNSPECIFIED:
                raise not_for_clients(scope)
            if name != self.tenant:
                raise catalogue.FORBIDDEN.refused(problem="the client's token is not one of this tenant's")
            self.client.permissions.check_right(client_right)
        elif self.tenant:
            self._authorize_own(scope, name)
        else:
            self._authorize_unauthenticated(scope, tenant)

    def _authorize_link(self) -> None:
        if self.kind is CallerKind.ANYBODY:
            raise catalogue.UNAUTHORIZED.refused(problem="an edge must present its credentials")
        if self.kind is not CallerKind.EDGE:
            raise catalogue.FORBIDDEN.refused(problem="only edges may open a link")

    def _authorize_own(self, scope: int, name: str) -> None:
        if scope == SCOPE_OPERATOR:
            raise catalogue.FORBIDDEN.refused(problem="this takes the operator's key")
        credentials = "the API key" if self.kind is CallerKind.KEY else "the client's token"
        if name != self.tenant:
            raise catalogue.FORBIDDEN.refused(problem=f"{credentials} is not one of this tenant's")
        if scope not in self.scopes:
            raise catalogue.FORBIDDEN.refused(problem=f"{credentials} does not grant {scope_name(scope)}")

    def _authorize_unauthenticated(self, scope: int, tenant: Tenant | None) -> None:
        if scope == SCOPE_OPERATOR:
            raise catalogue.UNAUTHORIZED.refused(problem="the operator's key must be given")
        if tenant is None:
            return
        check_open_to_call(tenant.name, tenant.settings.open_to, scope, self.is_local)


def is_local(peer: str, remote: Iterable[str], *, is_forwarded: bool, is_edge: bool) -> bool:
    """Return whether a caller is on this machine, or on the machine of the edge that calls for it.

    `peer` is the address of the call, `remote` the addresses that the call's metadata names for its
    originator. An authenticated edge can vouch for a local originator; anybody else's metadata can only
    make a local call remote.
    """
    remote = list(remote)
    if is_forwarded or not all(is_loopback(each) for each in remote):
        return False
    return is_loopback(peer) or (is_edge and bool(remote))
