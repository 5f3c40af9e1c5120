"""Metadata by which an edge identifies an HTTP caller to the router, which authorizes the call."""

from __future__ import annotations

from urllib.parse import quote

from starlette.requests import Request
from trunkline.v1 import catalogue
from trunkline.v1.access_pb2 import SCOPE_ADMIN, SCOPE_OPERATOR
from trunkline.v1.tenant_pb2 import OPENNESS_ANYBODY, OPENNESS_LOOPBACK
from trunkline_runtime.call_metadata import ACTING_FOR, BY_SECRET, FORWARDED, REMOTE_IP, bearer_token
from trunkline_runtime.tenant_policy import CLIENT_SCOPES, scope_name

from trunkline_edge.auth.caller_policy import check_caller
from trunkline_edge.auth.claims import is_id
from trunkline_edge.dialects.tenant_policies import TenantPolicies
from trunkline_edge.http.known_keys import KnownKeys
from trunkline_edge.http.sources import source_of
from trunkline_edge.http.token_callers import TokenCaller
from trunkline_edge.transport.body_budget import STRANGERS

#: Headers passed on to the router unchanged.
PASSED_ON = ("traceparent", "tracestate")

#: A longer key cannot be valid, and does not fit into metadata.
MAX_KEY_CHARS = 4096

#: Prefix of API keys. Another system's token never has it.
API_KEY_PREFIX = "tl_"

#: Entry of a request's ASGI scope: what it was admitted for last.
_ADMITTED = "trunkline.admitted"


class CallerMetadata:
    """Identifies callers to the router. The edge knows no API keys, so it rejects only what it can tell.

    `is_dialect` marks the calls that a dialect's route makes. Its clients may send another system's token,
    which is ignored on a tenant that is open to them.
    """

    def __init__(self, tenants: TenantPolicies) -> None:
        self.tenants = tenants
        self._known_keys = KnownKeys()

    def admit(self, request: Request, tenant: str, scope: int, *, is_dialect: bool = False) -> None:
        """Raises Refused for a caller that the router would reject in any case, and for foreign web pages.

        Called before the body is read, so that unauthenticated callers cannot make the edge buffer one.
        """
        policy = self.tenants.policy(tenant)
        decision = (policy, scope, is_dialect)
        if policy is not None and request.scope.get(_ADMITTED) == decision:
            return
        source = source_of(request)
        has_proof = self._key(request, tenant, is_dialect) is not None
        if policy is not None:
            check_caller(policy, source, scope, has_proof=has_proof)
            request.scope[_ADMITTED] = decision
        elif has_proof:
            return
        elif scope == SCOPE_OPERATOR:
            raise catalogue.UNAUTHORIZED.refused(problem="the operator's key must be given")
        elif not is_id(tenant):
            raise catalogue.INVALID_ARGUMENT.refused(field="tenant", problem="is not a valid name")
        elif self.tenants.are_known:
            raise catalogue.UNKNOWN_TENANT.refused(tenant=tenant)
        elif source.is_foreign_page:
            # The origins that the tenant declares are not known yet.
            raise catalogue.ROUTER_UNAVAILABLE.refused()

    def metadata(
        self,
        request: Request,
        tenant: str,
        scope: int,
        client: TokenCaller | None = None,
        *,
        is_dialect: bool = False,
        dialect: str = "",
    ) -> list[tuple[str, str | bytes]]:
        """The metadata of a call that takes this scope; `tenant` is "" if the call names none.

        `client` is the caller if their token is verified. `dialect` is the one whose route makes the call: if
        the caller manages it, the edge acts for the tenant.

        Raises Refused like `admit`, and for credentials that metadata cannot carry.
        """
        self.admit(request, tenant, scope, is_dialect=is_dialect)
        metadata: list[tuple[str, str | bytes]] = []
        for name in PASSED_ON:
            value = request.headers.get(name)
            if value is not None:
                if not _fits_metadata(value):
                    raise catalogue.INVALID_ARGUMENT.refused(field=name, problem="must be printable ASCII")
                metadata.append((name, value))
        key = self._key(request, tenant, is_dialect)
        if client is not None:
            metadata.append(client.metadata)
            if dialect and client.principal.manages == dialect:
                metadata.append(acting_for(tenant))
        elif key is not None:
            metadata += self._credentials(key, tenant, scope)
        elif is_dialect and self._is_open_to_this_machine(tenant):
            # The dialect decides what its local clients may do; by itself the router would ask for a key.
            metadata.append(acting_for(tenant))
        return metadata + _origin_of(request)

    def of_visitor(self, request: Request, tenant: str, scope: int) -> list[tuple[str, str | bytes]]:
        """The metadata of a call for a visitor whom a dialect admits without proof.

        Raises Refused UNKNOWN_TENANT, and ORIGIN_FORBIDDEN for a page of a site that is not declared.
        """
        policy = self.tenants.policy(tenant)
        if policy is None:
            raise catalogue.UNKNOWN_TENANT.refused(tenant=tenant)
        check_caller(policy, source_of(request), scope, has_proof=True)
        return [acting_for(tenant), *_origin_of(request)]

    def share(
        self, request: Request, tenant: str, client: TokenCaller | None = None, *, is_dialect: bool = False
    ) -> str:
        """Name the share of the edge's memory and time that an admitted request counts against.

        That is its tenant's, unless its key may be made up: whoever has none cannot use up a tenant's share.
        """
        key = self._key(request, tenant, is_dialect)
        if client is not None or key is None or self.tenants.tenant_of_token(key) == tenant:
            return tenant
        return tenant if self._known_keys.has(tenant, key) else STRANGERS

    def accepted(self, request: Request, tenant: str, *, is_dialect: bool = False) -> None:
        """Remember the request's key, if any: the router has accepted it."""
        key = self._key(request, tenant, is_dialect)
        if key is not None:
            self._known_keys.add(tenant, key)

    def of_denied(self, request: Request, tenant: str, scope: int) -> list[tuple[str, str | bytes]] | None:
        """The metadata, without credentials, of a call refused here that the router refuses, too.

        None if the router would not: the tenant is open to anybody.
        """
        policy = self.tenants.policy(tenant)
        if scope not in (SCOPE_ADMIN, SCOPE_OPERATOR) and (
            policy is None or policy.settings.open_to == OPENNESS_ANYBODY
        ):
            return None
        return [(REMOTE_IP, source_of(request).remote_ip or "unknown"), (FORWARDED, "1")]

    def _key(self, request: Request, tenant: str, is_dialect: bool) -> str | None:
        """The request's key or token; None if it has none, or one that is ignored."""
        key = key_of(request)
        if key is None or not is_dialect or key.startswith(API_KEY_PREFIX):
            return key
        is_open = self.tenants.is_open(tenant, source_of(request).is_local)
        return None if is_open and self.tenants.tenant_of_token(key) != tenant else key

    def _is_open_to_this_machine(self, tenant: str) -> bool:
        policy = self.tenants.policy(tenant)
        return policy is not None and policy.settings.open_to == OPENNESS_LOOPBACK

    def _credentials(self, key: str, tenant: str, scope: int) -> list[tuple[str, str]]:
        """The edge itself verifies a secret that the tenant's clients share; the router verifies the rest."""
        if tenant and self.tenants.tenant_of_token(key) == tenant:
            if scope not in CLIENT_SCOPES:
                problem = f"the client's token does not grant {scope_name(scope)}"
                raise catalogue.FORBIDDEN.refused(problem=problem)
            return [acting_for(tenant), (BY_SECRET, "1")]
        if len(key) > MAX_KEY_CHARS or not _fits_metadata(key):
            raise catalogue.UNAUTHORIZED.refused(problem="the key is not valid")
        return [("authorization", f"Bearer {key}")]


def key_of(request: Request) -> str | None:
    """The request's API key or token, possibly empty; None if it has no credentials."""
    token = bearer_token(request.headers.get("authorization", ""))
    return token if token is not None else request.headers.get("x-api-key")


def acting_for(tenant: str) -> tuple[str, str]:
    """The metadata entry by which an edge says that it acts for a client of the tenant."""
    return ACTING_FOR, quote(tenant, safe="")


def _origin_of(request: Request) -> list[tuple[str, str | bytes]]:
    source = source_of(request)
    metadata: list[tuple[str, str | bytes]] = [(REMOTE_IP, source.remote_ip or "unknown")]
    if source.is_unlike_its_address:
        metadata.append((FORWARDED, "1"))
    return metadata


def _fits_metadata(value: str) -> bool:
    return value.isascii() and value.isprintable()
