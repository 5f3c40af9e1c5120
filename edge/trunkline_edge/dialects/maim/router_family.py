"""Connections of maim_message's `Router` and `MessageClient`, see docs/dialects/maim_router.md.

They share the path `/ws` with the API server. Their header `platform` distinguishes them.
"""

from __future__ import annotations

from trunkline.v1 import catalogue
from trunkline_runtime.call_metadata import bearer_token

from trunkline_edge.dialects.dialect import Clock, ConnectPlan, ConnectRequest
from trunkline_edge.dialects.maim.messages import header_text, opening_of
from trunkline_edge.dialects.maim.router_codec import MaimRouter

#: Headers of the API server's clients, which never send `platform`.
_API_HEADERS = ("x-apikey", "x-platform")


def is_router(request: ConnectRequest) -> bool:
    """Whether a client of this family connects."""
    return "platform" in request.headers and not any(name in request.headers for name in _API_HEADERS)


def connect(clock: Clock, request: ConnectRequest) -> ConnectPlan:
    """Plan a connection. Raises Refused UNAUTHORIZED or INVALID_ADDRESS if the tenant or agent is unknown."""
    tenant, agent, token = _identity(request)
    agent = agent or request.tenants.default_agent(tenant)
    if not agent:
        problem = f"the client names no agent and the tenant has no default; set [tenants.{tenant}] agent"
        raise catalogue.INVALID_ADDRESS.refused(problem=problem)
    platform = header_text(request.headers["platform"])
    codec = MaimRouter(clock, tenant, agent, platform)
    opened = opening_of(codec.name, tenant, agent, platform)
    opened.supersedes = True
    return ConnectPlan(codec, opened, token, names_user=False, may_be_foreign=True, large_frames=True)


def _identity(request: ConnectRequest) -> tuple[str, str, str]:
    """Tenant, agent or "", and token or "".

    A key in the URL names them, or else the token does: a secret names its tenant, and any other token may be
    such a key itself.
    """
    token = _authorization(request) or request.parameter("token")
    if key := request.parameter("api_key"):
        tenant, agent, own_token = _split(key)
        token = own_token or token
    elif tenant := request.tenants.tenant_of_token(token):
        agent = ""
    else:
        tenant, agent, token = _split(token)
        if not agent:
            tenant = ""
    if not tenant:
        problem = (
            "the token must be a tenant's secret, or <tenant>:<agent> or <tenant>:<agent>:<token>; "
            "or the URL must contain ?api_key=<tenant>:<agent>"
        )
        raise catalogue.UNAUTHORIZED.refused(problem=problem)
    return tenant, agent, token


def _split(key: str) -> tuple[str, str, str]:
    tenant, _, rest = key.partition(":")
    agent, _, token = rest.partition(":")
    return tenant, agent, token


def _authorization(request: ConnectRequest) -> str:
    """The token in `Authorization`, which clients send without a scheme."""
    value = header_text(request.headers.get("authorization", "")).strip()
    return bearer_token(value) or value
