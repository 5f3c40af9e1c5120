"""maim_message's API server, see docs/dialects/maim_api.md: `/ws`, addressed by an API key.

Clients of another family share the path, see `router_family`.
"""

from __future__ import annotations

import hashlib
import uuid

from trunkline.v1 import catalogue

from trunkline_edge.dialects.dialect import Clock, ConnectPlan, ConnectRequest, Dialect
from trunkline_edge.dialects.maim import router_family
from trunkline_edge.dialects.maim.api_codec import MaimApi
from trunkline_edge.dialects.maim.messages import header_text, opening_of
from trunkline_edge.dialects.paths import Path

#: Platform of clients that name none.
DEFAULT_PLATFORM = "unknown"


def make(clock: Clock) -> Dialect:
    """Create the dialect."""

    def connect(request: ConnectRequest) -> ConnectPlan:
        if router_family.is_router(request):
            return router_family.connect(clock, request)
        api_key = _named(request, "api_key", "x-apikey")
        tenant, agent, token = _identity(api_key)
        platform = _named(request, "platform", "x-platform") or DEFAULT_PLATFORM
        codec = MaimApi(clock, tenant, agent, platform, _connection_name(request), api_key if token else "")
        return ConnectPlan(
            codec,
            opening_of(codec.name, tenant, agent, platform),
            token or request.token,
            names_user=False,
            may_be_foreign=True,
            large_frames=True,
        )

    return Dialect(
        name="maim.api",
        needs_tenants=True,
        connect=connect,
        rejection_codec=MaimApi(clock),
        websocket_paths=(Path("/ws"), Path("/ws/")),
    )


def _identity(api_key: str) -> tuple[str, str, str]:
    """Tenant, agent and token (or "") in an API key. Raises Refused UNAUTHORIZED."""
    tenant, _, rest = api_key.partition(":")
    agent, _, token = rest.partition(":")
    if not tenant or not agent:
        problem = "an api_key is needed, <tenant>:<agent> or <tenant>:<agent>:<token>"
        raise catalogue.UNAUTHORIZED.refused(problem=problem)
    return tenant, agent, token


def _named(request: ConnectRequest, parameter: str, header: str) -> str:
    return request.parameter(parameter) or header_text(request.headers.get(header, ""))


def _connection_name(request: ConnectRequest) -> str:
    """The `uuid` for acknowledgements: the client's, else one derived from its handshake's nonce."""
    if named := header_text(request.headers.get("x-uuid", "")):
        return named
    nonce = request.headers.get("sec-websocket-key", "").encode()
    return str(uuid.UUID(bytes=hashlib.blake2b(nonce, digest_size=16).digest(), version=4))
