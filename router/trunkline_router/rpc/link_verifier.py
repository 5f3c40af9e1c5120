"""How an edge proves that it is one."""

from __future__ import annotations

import hmac
from hashlib import sha256
from typing import Any

import grpc.aio
from trunkline_runtime import link_key
from trunkline_runtime.loopback import is_loopback

from trunkline_router.rpc.caller_resolver import is_proxied, peer_ip

_Context = grpc.aio.ServicerContext[Any, Any]


class LinkVerifier:
    """Takes for an edge whoever shows the link key, or a certificate of the authority for edges.

    A port that asks for certificates has them verified before a call is seen, and no other port asks. Where
    neither is set, whoever is on this machine is one, or whoever is anywhere, if that was said; but nobody
    who came by a proxy.
    """

    def __init__(self, key: str = "", *, by_certificate: bool = False, from_anywhere: bool = False) -> None:
        self._key = _digest(key) if key else None
        self._by_certificate = by_certificate
        self._from_anywhere = from_anywhere

    def holds(self, context: _Context) -> bool:
        """See Proof."""
        if self._key is None and not self._by_certificate:
            is_near = self._from_anywhere or is_loopback(peer_ip(context.peer()))
            return is_near and not is_proxied(context)
        return self._shows_certificate(context) or self._shows_key(context)

    def _shows_certificate(self, context: _Context) -> bool:
        return self._by_certificate and "x509_pem_cert" in context.auth_context()

    def _shows_key(self, context: _Context) -> bool:
        """The key is the only one shown, and the right one."""
        shown = [value for name, value in context.invocation_metadata() or () if name == link_key.METADATA]
        if self._key is None or len(shown) != 1:
            return False
        [key] = shown
        digest = _digest(key) if isinstance(key, str) else b""
        return hmac.compare_digest(digest, self._key)


def _digest(key: str) -> bytes:
    return sha256(key.encode()).digest()
