"""API keys that the router has accepted from this edge's callers."""

from __future__ import annotations

from hashlib import sha256

#: Keys remembered at most; beyond it, the one that was accepted longest ago is forgotten.
MAX_KNOWN = 4096


class KnownKeys:
    """The keys accepted last, as digests.

    An edge cannot verify a key itself. It trusts a known one with nothing but the bounds of its tenant's
    requests, so a key that was revoked since does no harm.
    """

    def __init__(self) -> None:
        #: In the order of acceptance.
        self._digests: dict[bytes, None] = {}

    def add(self, tenant: str, key: str) -> None:
        """Remember a key that the router has accepted for a tenant."""
        digest = _digest(tenant, key)
        self._digests.pop(digest, None)
        self._digests[digest] = None
        if len(self._digests) > MAX_KNOWN:
            del self._digests[next(iter(self._digests))]

    def has(self, tenant: str, key: str) -> bool:
        """Whether the key is known."""
        return _digest(tenant, key) in self._digests


def _digest(tenant: str, key: str) -> bytes:
    return sha256(f"{tenant}\n{key}".encode(errors="surrogateescape")).digest()
