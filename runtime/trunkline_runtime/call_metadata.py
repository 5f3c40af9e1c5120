"""Metadata and headers by which callers identify themselves to an edge or a router."""

from __future__ import annotations

from collections.abc import Iterable

#: Metadata by which an edge says for whom it makes a call: the caller's IP address, that the caller does not
#: count as local, and the tenant, percent-encoded, whose client the edge has admitted.
REMOTE_IP, FORWARDED, ACTING_FOR = "trunkline-remote-ip", "trunkline-forwarded", "trunkline-acting-for"

#: Metadata beside ACTING_FOR if the edge admitted the client by the secret that the tenant's clients share,
#: which may be revoked.
BY_SECRET = "trunkline-by-secret"

#: Metadata by which an edge names the client that it makes a call for: a serialized TokenHolder. Beside
#: ACTING_FOR the client manages the dialect whose route makes the call, and may do what the edge may.
TOKEN_HOLDER = "trunkline-client-bin"

#: Headers that proxies, load balancers and CDNs add to the requests that they forward, by lower-case name.
FORWARDING_HEADERS = frozenset(
    {
        "via", "forwarded", "forwarded-for", "client-ip", "x-client-ip", "x-cluster-client-ip",
        "x-original-forwarded-for", "x-original-for", "x-original-host", "x-original-proto",
        "x-proxyuser-ip", "x-remote-ip", "x-remote-addr", "x-host", "x-scheme", "cdn-loop",
        "true-client-ip", "fastly-client-ip", "fly-client-ip", "cloudfront-viewer-address",
        "do-connecting-ip", "x-nf-client-connection-ip", "x-vercel-id", "x-appengine-user-ip",
        "x-azure-clientip", "x-azure-socketip", "x-amz-cf-id", "x-amzn-trace-id", "x-varnish",
    }
)  # fmt: skip

#: Prefixes of such headers.
FORWARDING_PREFIXES = ("x-forwarded", "x-real-", "x-envoy-", "x-arr-", "cf-", "tailscale-")


def is_proxied(names: Iterable[str]) -> bool:
    """True if a header, of which these are the lower-case names, was added by a proxy.

    The peer address of such a request is the proxy's, and says nothing about the caller.
    """
    return any(name in FORWARDING_HEADERS or name.startswith(FORWARDING_PREFIXES) for name in names)


def bearer_token(authorization: str) -> str | None:
    """The token of an Authorization header with the Bearer scheme (RFC 6750); None for other schemes."""
    scheme, _, token = authorization.partition(" ")
    return token.strip() if scheme.lower() == "bearer" else None
