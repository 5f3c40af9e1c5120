"""Whose an HTTP request is: told to the router, which decides what it may do."""

from __future__ import annotations

from urllib.parse import quote

from starlette.requests import Request
from trunkline.v1 import catalogue
from trunkline.v1.access_pb2 import (
    SCOPE_ADMIN,
    SCOPE_OPERATOR,
    Scope,
)
from trunkline.v1.tenant_pb2 import OPENNESS_LOOPBACK
from trunkline_runtime.call_metadata import ACTING_FOR, FORWARDED, PROXIED, REMOTE_IP, bearer_token
from trunkline_runtime.loopback import is_loopback
from trunkline_runtime.tenant_policy import CLIENT_SCOPES

from trunkline_edge.dialects.tenant_policies import TenantPolicies
from trunkline_edge.http.router_client import CallFailed

#: Headers that go on to the router as they are.
PASSED_ON = ("traceparent", "tracestate")

#: A longer key is nobody's; the router could not be told of it.
MAX_KEY_CHARS = 4096


class CallerMetadata:
    """What the edge does about who asks: little, for it does not know the keys."""

    def __init__(self, tenants: TenantPolicies) -> None:
        self._tenants = tenants

    def admit(self, request: Request, tenant: str, scope: int) -> None:
        """Raises CallFailed for a request without a proof that the router would refuse in any case.

        To be asked before a body is read, which is not held for those who may not even ask.
        """
        if key_of(request) is not None:
            return
        if scope == SCOPE_OPERATOR:
            raise _unauthorized("the operator's key must be given")
        policy = self._tenants.policy(tenant)
        if policy is None:
            if self._tenants.are_known:
                raise CallFailed.of(catalogue.UNKNOWN_TENANT.refused(tenant=tenant))
            return
        wanted = f"an API key with {_name(scope)} must be given"
        if not self._tenants.is_open(tenant, is_local(request)):
            if self._tenants.is_open(tenant, is_local=True):
                wanted = f"tenant {tenant} is open to this machine only; from elsewhere {wanted}"
            raise _unauthorized(wanted)
        if scope == SCOPE_ADMIN and policy.settings.open_to != OPENNESS_LOOPBACK:
            raise _unauthorized(wanted)

    def metadata(self, request: Request, tenant: str, scope: int) -> list[tuple[str, str]]:
        """What the router is told with a call that takes this scope, for a tenant; "" for none.

        Raises CallFailed for what it cannot be told, or would refuse.
        """
        found = []
        for name in PASSED_ON:
            value = request.headers.get(name)
            if value is not None:
                if not _can_be_told(value):
                    refused = catalogue.INVALID_ARGUMENT.refused(
                        field=name, problem="must be printable ASCII"
                    )
                    raise CallFailed.of(refused)
                found.append((name, value))
        key = key_of(request)
        if key is not None:
            found.append(self._proof(key, tenant, scope))
        found.append((REMOTE_IP, request.client.host if request.client else "unknown"))
        if is_forwarded(request):
            found.append((FORWARDED, "1"))
        return found

    def _proof(self, key: str, tenant: str, scope: int) -> tuple[str, str]:
        """A secret that the tenant's clients share is known to the edge; all else the router looks at."""
        if tenant and self._tenants.of_token(key) == tenant:
            if scope not in CLIENT_SCOPES:
                problem = f"the client's token does not give {_name(scope)}"
                raise CallFailed.of(catalogue.FORBIDDEN.refused(problem=problem))
            return ACTING_FOR, quote(tenant, safe="")
        if len(key) > MAX_KEY_CHARS or not _can_be_told(key):
            raise _unauthorized("the key that was shown is not valid")
        return "authorization", f"Bearer {key}"


def key_of(request: Request) -> str | None:
    """The key or token that a request shows, also where it is empty; None where it shows none."""
    token = bearer_token(request.headers.get("authorization", ""))
    return token if token is not None else request.headers.get("x-api-key")


def is_forwarded(request: Request) -> bool:
    """It came by a proxy, and its own address says nothing."""
    return any(name in request.headers for name in PROXIED)


def is_local(request: Request) -> bool:
    """It is from this machine, and came by no proxy."""
    return request.client is not None and is_loopback(request.client.host) and not is_forwarded(request)


def _name(scope: int) -> str:
    return Scope.Name(scope)  # type: ignore[arg-type]


def _can_be_told(value: str) -> bool:
    return value.isascii() and value.isprintable()


def _unauthorized(problem: str) -> CallFailed:
    return CallFailed.of(catalogue.UNAUTHORIZED.refused(problem=problem))
