"""Verifies the credentials by which an edge opens a link."""

from __future__ import annotations

import hmac
from hashlib import sha256
from typing import Any

import grpc.aio
from trunkline_runtime import link_key
from trunkline_runtime.loopback import is_loopback

from trunkline_router.rpc.caller_resolver import is_proxied_call, peer_ip

_Context = grpc.aio.ServicerContext[Any, Any]


class LinkVerifier:
    """Accepts callers with the link key, or with a certificate of the edges' authority, as edges.

    gRPC verifies certificates before a call arrives, on the listener for links only. With neither a key nor
    certificates configured, callers on this machine are edges (or all callers, with `from_anywhere`), unless
    they come through a proxy.
    """

    def __init__(self, key: str = "", *, by_certificate: bool = False, from_anywhere: bool = False) -> None:
        self._digest = _digest(key) if key else None
        self._by_certificate = by_certificate
        self._from_anywhere = from_anywhere

    def is_edge(self, context: _Context) -> bool:
        """See EdgeVerifier."""
        if self._digest is None and not self._by_certificate:
            is_allowed = self._from_anywhere or is_loopback(peer_ip(context.peer()))
            return is_allowed and not is_proxied_call(context)
        return self._has_certificate(context) or self._has_key(context)

    def _has_certificate(self, context: _Context) -> bool:
        return self._by_certificate and "x509_pem_cert" in context.auth_context()

    def _has_key(self, context: _Context) -> bool:
        """Whether the call has exactly one link key, the right one."""
        keys = [value for name, value in context.invocation_metadata() or () if name == link_key.METADATA]
        if self._digest is None or len(keys) != 1:
            return False
        [key] = keys
        digest = _digest(key) if isinstance(key, str) else b""
        return hmac.compare_digest(digest, self._digest)


def _digest(key: str) -> bytes:
    return sha256(key.encode()).digest()
