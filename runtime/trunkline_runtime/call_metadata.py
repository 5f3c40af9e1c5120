"""How callers show who they are, to an edge and to a router alike."""

from __future__ import annotations

#: Metadata by which an edge says for whom it makes a call: the caller's address, that a proxy has forwarded
#: the request, and the tenant, written as in a URL, one of whose clients' tokens it has verified.
REMOTE_IP, FORWARDED, ACTING_FOR = "trunkline-remote-ip", "trunkline-forwarded", "trunkline-acting-for"

#: Where one of these headers is set the request came by a proxy, and its own address says nothing.
PROXIED = ("forwarded", "x-forwarded-for", "x-real-ip")


def bearer_token(authorization: str) -> str | None:
    """What an Authorization header shows by the scheme Bearer (RFC 6750); None by any other."""
    scheme, _, token = authorization.partition(" ")
    return token.strip() if scheme.lower() == "bearer" else None
