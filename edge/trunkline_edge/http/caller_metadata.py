"""Metadata by which an edge identifies an HTTP caller to the router, which authorizes the call."""

from __future__ import annotations

from urllib.parse import quote

from starlette.requests import Request
from trunkline.v1 import catalogue
from trunkline.v1.access_pb2 import SCOPE_OPERATOR
from trunkline_runtime.call_metadata import ACTING_FOR, FORWARDED, PROXIED, REMOTE_IP, bearer_token
from trunkline_runtime.loopback import is_local_caller
from trunkline_runtime.tenant_policy import CLIENT_SCOPES, check_open_to_call, scope_name

from trunkline_edge.dialects.tenant_policies import TenantPolicies
from trunkline_edge.http.token_callers import TokenCaller

#: Headers passed on to the router unchanged.
PASSED_ON = ("traceparent", "tracestate")

#: A longer key cannot be valid, and does not fit into metadata.
MAX_KEY_CHARS = 4096


class CallerMetadata:
    """Identifies callers to the router. The edge knows no API keys, so it rejects only what it can tell."""

    def __init__(self, tenants: TenantPolicies) -> None:
        self._tenants = tenants

    def admit(self, request: Request, tenant: str, scope: int) -> None:
        """Raises Refused for a request without credentials that the router would reject in any case.

        Called before the body is read, so that unauthenticated callers cannot make the edge buffer one.
        """
        if key_of(request) is not None:
            return
        if scope == SCOPE_OPERATOR:
            raise catalogue.UNAUTHORIZED.refused(problem="the operator's key must be given")
        policy = self._tenants.policy(tenant)
        if policy is not None:
            check_open_to_call(tenant, policy.settings.open_to, scope, is_local(request))
        elif self._tenants.are_known:
            raise catalogue.UNKNOWN_TENANT.refused(tenant=tenant)

    def metadata(
        self, request: Request, tenant: str, scope: int, client: TokenCaller | None = None
    ) -> list[tuple[str, str | bytes]]:
        """The metadata of a call that takes this scope; `tenant` is "" if the call names none.

        `client` is the caller if their token is verified.

        Raises Refused for credentials that metadata cannot carry or that the router would reject.
        """
        metadata: list[tuple[str, str | bytes]] = []
        for name in PASSED_ON:
            value = request.headers.get(name)
            if value is not None:
                if not _fits_metadata(value):
                    raise catalogue.INVALID_ARGUMENT.refused(field=name, problem="must be printable ASCII")
                metadata.append((name, value))
        key = key_of(request)
        if client is not None:
            metadata.append(client.metadata)
        elif key is not None:
            metadata.append(self._credentials(key, tenant, scope))
        metadata.append((REMOTE_IP, request.client.host if request.client else "unknown"))
        if is_forwarded(request):
            metadata.append((FORWARDED, "1"))
        return metadata

    def _credentials(self, key: str, tenant: str, scope: int) -> tuple[str, str]:
        """The edge itself verifies a secret that the tenant's clients share; the router verifies the rest."""
        if tenant and self._tenants.tenant_of_token(key) == tenant:
            if scope not in CLIENT_SCOPES:
                problem = f"the client's token does not grant {scope_name(scope)}"
                raise catalogue.FORBIDDEN.refused(problem=problem)
            return ACTING_FOR, quote(tenant, safe="")
        if len(key) > MAX_KEY_CHARS or not _fits_metadata(key):
            raise catalogue.UNAUTHORIZED.refused(problem="the key is not valid")
        return "authorization", f"Bearer {key}"


def key_of(request: Request) -> str | None:
    """The request's API key or token, possibly empty; None if it has no credentials."""
    token = bearer_token(request.headers.get("authorization", ""))
    return token if token is not None else request.headers.get("x-api-key")


def is_forwarded(request: Request) -> bool:
    """True if the request came through a proxy, so that its address is not the caller's."""
    return any(name in request.headers for name in PROXIED)


def is_local(request: Request) -> bool:
    """True if the caller is on this machine."""
    return request.client is not None and is_local_caller(
        request.client.host, is_forwarded=is_forwarded(request)
    )


def _fits_metadata(value: str) -> bool:
    return value.isascii() and value.isprintable()
