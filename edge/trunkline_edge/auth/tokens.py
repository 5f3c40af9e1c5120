"""Verifies clients' tokens: signed JSON Web Tokens (RFC 7519), following RFC 8725."""

from __future__ import annotations

from joserfc.jwa import JWS_ALGORITHMS, JWSAlgModel
from trunkline.v1.catalogue import Refused
from trunkline.v1.tenant_pb2 import ClientAuth
from trunkline_runtime.jwk import ALGORITHMS

from trunkline_edge.auth import jws
from trunkline_edge.auth.claims import principal_of
from trunkline_edge.auth.jws import UnverifiedToken, unauthorized
from trunkline_edge.auth.key_set import KeySet, VerificationKey
from trunkline_edge.auth.principal import Principal

__all__ = ["Principal", "UnknownKey", "verify"]

#: A token without `kid` is tried with at most this many keys.
MAX_TRIED = 4

_MODELS: dict[str, JWSAlgModel] = {model.name: model for model in JWS_ALGORITHMS if model.name in ALGORITHMS}


class UnknownKey(Exception):
    """A token names a key that is not known; a JWK Set may have it by now.

    `kid` is the key's name, None if the token gives none.
    """

    def __init__(self, kid: str | None) -> None:
        super().__init__(f"the token was signed with an unknown key{f': {kid}' if kid else ''}")
        self.kid = kid

    def refused(self) -> Refused:
        """The refusal to send if no JWK Set has the key."""
        return unauthorized(str(self))


def verify(token: str, tenant: str, auth: ClientAuth, keys: KeySet, now_s: float) -> Principal:
    """Verify a token and return its principal; `now_s` is in seconds since 1970.

    Raises Refused UNAUTHORIZED or TOKEN_EXPIRED, with a text for the client's developer and without secrets.
    Raises UnknownKey, after which the caller may fetch more keys and try again.
    """
    unverified = jws.parse(token)
    key = _verifying_key(unverified, keys)
    return principal_of(unverified.payload, tenant, auth, key.identity, now_s)


def _verifying_key(unverified: UnverifiedToken, keys: KeySet) -> VerificationKey:
    """The key that verifies the signature. Raises Refused and UnknownKey."""
    candidates = keys.find(unverified.kid, unverified.algorithm)
    if not candidates:
        raise _no_key(unverified, keys)
    if unverified.kid is None and len(candidates) > MAX_TRIED:
        raise unauthorized("the token's header must have a `kid`, because the tenant has many keys")
    model = _MODELS[unverified.algorithm]
    for key in candidates:
        if model.verify(unverified.content, unverified.signature, key.key):
            return key
    raise unauthorized("the token's signature is wrong")


def _no_key(unverified: UnverifiedToken, keys: KeySet) -> Exception:
    """The exception for a token that no key fits."""
    if unverified.kid is not None and unverified.kid in keys:
        return unauthorized(f"the token's key {unverified.kid} is not for {unverified.algorithm}")
    if unverified.algorithm == "HS256":
        # JWK Sets have no symmetric keys.
        return UnknownKey(unverified.kid).refused()
    return UnknownKey(unverified.kid)
