"""Verifies the tokens of a tenant's clients: signed JSON Web Tokens (RFC 7519), by RFC 8725."""

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

#: With so many keys at most a token is tried that does not name its key.
MAX_TRIED = 4

_MODELS: dict[str, JWSAlgModel] = {model.name: model for model in JWS_ALGORITHMS if model.name in ALGORITHMS}


class UnknownKey(Exception):
    """A token was signed with a key that is not known; a JWK Set may have it by now.

    `kid` is its name, and None where the token does not give one.
    """

    def __init__(self, kid: str | None) -> None:
        super().__init__(f"the token was signed with a key that is not known{f': {kid}' if kid else ''}")
        self.kid = kid

    def refused(self) -> Refused:
        """The refusal, where no set has it."""
        return unauthorized(str(self))


def verify(token: str, tenant: str, auth: ClientAuth, keys: KeySet, now_s: float) -> Principal:
    """Who shows a token to the tenant, and what it allows; `now_s` is the time since 1970.

    Raises Refused, UNAUTHORIZED or TOKEN_EXPIRED, whose text is for the client's developer and shows nothing
    secret; or UnknownKey, after which the caller may look for more keys.
    """
    signed = jws.read(token)
    key = _verified_by(signed, keys)
    return principal_of(signed.payload, tenant, auth, key.identity, now_s)


def _verified_by(signed: UnverifiedToken, keys: KeySet) -> VerificationKey:
    """The key with which the token was signed."""
    candidates = keys.find(signed.kid, signed.algorithm)
    if not candidates:
        raise _without_key(signed, keys)
    if signed.kid is None and len(candidates) > MAX_TRIED:
        raise unauthorized(
            "the token must name its key: its header has no `kid`, and the tenant has many keys"
        )
    model = _MODELS[signed.algorithm]
    for key in candidates:
        if model.verify(signed.content, signed.signature, key.key):
            return key
    raise unauthorized("the token's signature is wrong")


def _without_key(signed: UnverifiedToken, keys: KeySet) -> Exception:
    """What to raise where no key fits."""
    if signed.kid is not None and signed.kid in keys:
        return unauthorized(f"the token's key {signed.kid} is not for {signed.algorithm}")
    if signed.algorithm == "HS256":
        # No JWK Set has symmetric keys.
        return UnknownKey(signed.kid).refused()
    return UnknownKey(signed.kid)
