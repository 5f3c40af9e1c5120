"""Metadata and headers by which callers identify themselves to an edge or a router."""

from __future__ import annotations

#: Metadata by which an edge says for whom it makes a call: the caller's IP address, that a proxy forwarded
#: the request, and the tenant, percent-encoded, whose client token the edge has verified.
REMOTE_IP, FORWARDED, ACTING_FOR = "trunkline-remote-ip", "trunkline-forwarded", "trunkline-acting-for"

#: Metadata by which an edge names the client that it makes a call for: a serialized TokenHolder.
TOKEN_HOLDER = "trunkline-client-bin"

#: A request with one of these headers came through a proxy; its own address says nothing.
PROXIED = ("forwarded", "x-forwarded-for", "x-real-ip")


def bearer_token(authorization: str) -> str | None:
    """The token of an Authorization header with the Bearer scheme (RFC 6750); None for other schemes."""
    scheme, _, token = authorization.partition(" ")
    return token.strip() if scheme.lower() == "bearer" else None
