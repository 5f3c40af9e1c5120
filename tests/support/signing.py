"""Signing keys of tenants, and tokens signed with them."""

from __future__ import annotations

import itertools
import json
import time
from typing import Any

from joserfc.jwa import JWS_ALGORITHMS
from joserfc.jwk import ECKey, Key, OctKey, OKPKey, RSAKey
from trunkline.v1.tenant_pb2 import VerificationKey
from trunkline_runtime.jose import to_base64url

_MODELS = {model.name: model for model in JWS_ALGORITHMS}
_numbers = itertools.count(1)


def new_key(algorithm: str) -> Key:
    """Generate a private key or, for HS256, a secret."""
    if algorithm == "HS256":
        return OctKey.generate_key(256)
    if algorithm == "RS256":
        return RSAKey.generate_key(2048)
    return ECKey.generate_key("P-256") if algorithm == "ES256" else OKPKey.generate_key("Ed25519")


def public(key: Key) -> str:
    """Return the public JWK of a key."""
    return json.dumps(key.as_dict(private=False))


def part(value: object) -> str:
    """Encode one part of a token; text and bytes are used unchanged."""
    if isinstance(value, str):
        return to_base64url(value.encode())
    return to_base64url(value if isinstance(value, bytes) else json.dumps(value).encode())


def signed(header: object, payload: object, algorithm: str, key: Key) -> str:
    """Sign any header and payload by an algorithm, which need not be the one in the header."""
    content = f"{part(header)}.{part(payload)}"
    return f"{content}.{to_base64url(_MODELS[algorithm].sign(content.encode(), key))}"


class Signer:
    """Signing key of a tenant, with id `kid`."""

    def __init__(self, tenant: str, kid: str = "k1", algorithm: str = "EdDSA") -> None:
        self.tenant = tenant
        self.kid = kid
        self.algorithm = algorithm
        self.key = new_key(algorithm)

    def declared(self) -> VerificationKey:
        """Return the key as a tenant setting."""
        return VerificationKey(kid=self.kid, algorithm=self.algorithm, jwk=public(self.key))

    def jwk(self) -> dict[str, Any]:
        """Return the key as an entry of a JWK Set."""
        members: dict[str, Any] = json.loads(public(self.key))
        return members | {"kid": self.kid, "alg": self.algorithm}

    def token(self, user: str, lifetime_s: float = 600, **claims: Any) -> str:
        """Return a token for a user with a unique id, issued now; a claim set to `...` is omitted."""
        now_s = time.time()
        payload = {
            "sub": user,
            "tenant": self.tenant,
            "iat": now_s,
            "exp": now_s + lifetime_s,
            "jti": f"{self.kid}-{next(_numbers)}",
        }
        payload = {name: value for name, value in (payload | claims).items() if value is not ...}
        header = {"alg": self.algorithm, "typ": "JWT", "kid": self.kid}
        return signed(header, payload, self.algorithm, self.key)
