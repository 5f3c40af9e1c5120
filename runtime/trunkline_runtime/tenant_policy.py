"""Decisions that edges and routers make alike from a tenant's settings."""

from __future__ import annotations

from trunkline.v1 import catalogue
from trunkline.v1.access_pb2 import (
    SCOPE_ADMIN,
    SCOPE_BROADCAST,
    SCOPE_HISTORY,
    SCOPE_OPERATOR,
    SCOPE_PRESENCE,
    Scope,
)
from trunkline.v1.catalogue import Refused
from trunkline.v1.tenant_pb2 import OPENNESS_ANYBODY, OPENNESS_LOOPBACK, TENANT_STATE_SUSPENDED

from trunkline_runtime.token_bucket import RateLimit

#: Scopes of a client's token, or of the secret that a tenant's clients share, when an edge makes calls for
#: its holder.
CLIENT_SCOPES = frozenset({SCOPE_BROADCAST, SCOPE_HISTORY, SCOPE_PRESENCE})

_TOKEN = "a token must be given"


def is_open(openness: int, is_local: bool) -> bool:
    """Whether callers without credentials are admitted; `is_local` if they are on the same machine."""
    return openness == OPENNESS_ANYBODY or (is_local and openness == OPENNESS_LOOPBACK)


def unauthenticated(tenant: str, openness: int, required: str = _TOKEN) -> Refused:
    """Refusal of a caller without credentials. Says so if local callers may do without."""
    if is_open(openness, is_local=True) and not is_open(openness, is_local=False):
        required = (
            f"tenant {tenant} is open to this machine only, addressed as localhost and not through a proxy; "
            f"otherwise {required}"
        )
    return catalogue.UNAUTHORIZED.refused(problem=required)


def check_open_to_call(tenant: str, openness: int, scope: int, is_local: bool) -> None:
    """Raises Refused UNAUTHORIZED unless a caller without credentials may use this scope.

    ADMIN takes an API key, however open the tenant is.
    """
    required = f"an API key with {scope_name(scope)} must be given"
    if scope == SCOPE_ADMIN:
        raise catalogue.UNAUTHORIZED.refused(problem=required)
    if not is_open(openness, is_local):
        raise unauthenticated(tenant, openness, required)


def not_for_clients(scope: int) -> Refused:
    """Refusal of a call that takes this scope, and no client's token."""
    required = "the operator's key" if scope == SCOPE_OPERATOR else f"an API key with {scope_name(scope)}"
    problem = f"a client's token does not allow this call; it takes {required}"
    return catalogue.FORBIDDEN.refused(problem=problem)


def scope_name(scope: int) -> str:
    """The name of a Scope."""
    return Scope.Name(scope)  # type: ignore[arg-type]


def inactive(name: str, state: int) -> Refused:
    """Refusal of a request to a tenant that is not active."""
    if state == TENANT_STATE_SUSPENDED:
        return catalogue.TENANT_SUSPENDED.refused(tenant=name)
    return catalogue.UNKNOWN_TENANT.refused(tenant=name)


def rate_limited(rate: RateLimit, wait_s: float, whose: str) -> Refused:
    """Refusal of a request over a rate limit; it may be retried after `wait_s`."""
    return catalogue.RATE_LIMITED.refused(
        retry_after_ms=max(1, round(wait_s * 1000)), limit=rate.sentence, whose=whose
    )
