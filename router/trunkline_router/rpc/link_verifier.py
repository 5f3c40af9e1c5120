"""Verifies the credentials by which an edge opens a link."""

from __future__ import annotations

import hmac
from hashlib import sha256
from typing import Any

import grpc.aio
from trunkline_runtime import link_key
from trunkline_runtime.loopback import is_loopback

from trunkline_router.certificate_names import CertificateNames
from trunkline_router.rpc.caller_resolver import is_proxied_call, peer_ip

#: gRPC's names for what a certificate's subject alternative names hold.
_SAN = ("peer_dns", "peer_uri")

_Context = grpc.aio.ServicerContext[Any, Any]


class LinkVerifier:
    """Accepts callers with the link key, or with a certificate of the edges' authority, as edges.

    gRPC verifies certificates before a call arrives, on the listener for links only; with `names`, one of
    the certificate's must be among them. With neither a key nor certificates configured, callers on this
    machine are edges if `from_loopback`, all callers if `from_anywhere`, unless they come through a proxy
    that says so. A TCP proxy does not.
    """

    def __init__(
        self,
        key: str = "",
        *,
        by_certificate: bool = False,
        names: CertificateNames | None = None,
        from_loopback: bool = True,
        from_anywhere: bool = False,
    ) -> None:
        self._digest = _digest(key) if key else None
        self._by_certificate = by_certificate
        self._names = names
        self._from_loopback = from_loopback
        self._from_anywhere = from_anywhere

    def is_edge(self, context: _Context) -> bool:
        """See EdgeVerifier."""
        if self._digest is None and not self._by_certificate:
            is_local = self._from_loopback and is_loopback(peer_ip(context.peer()))
            is_allowed = self._from_anywhere or is_local
            return is_allowed and not is_proxied_call(context)
        return self._has_certificate(context) or self._has_key(context)

    def edge_names(self, context: _Context) -> tuple[str, ...]:
        """See EdgeVerifier."""
        return () if self._names is None or self._has_key(context) else self._matching(context)

    def _has_certificate(self, context: _Context) -> bool:
        if not self._by_certificate or "x509_pem_cert" not in context.auth_context():
            return False
        return self._names is None or bool(self._matching(context))

    def _matching(self, context: _Context) -> tuple[str, ...]:
        """The names of the caller's certificate that may link."""
        assert self._names is not None
        found = context.auth_context()
        dns, uris = ([each.decode("latin-1") for each in found.get(name, ())] for name in _SAN)
        return self._names.matching(dns, uris)

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
