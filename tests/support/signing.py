"""Keys of tenants, and tokens that they sign, as whoever issues them would make them."""

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
    """A private key, or for HS256 a secret."""
    if algorithm == "HS256":
        return OctKey.generate_key(256)
    if algorithm == "RS256":
        return RSAKey.generate_key(2048)
    return ECKey.generate_key("P-256") if algorithm == "ES256" else OKPKey.generate_key("Ed25519")


def public(key: Key) -> str:
    """A key as a tenant declares it."""
    return json.dumps(key.as_dict(private=False))


def part(value: object) -> str:
    """One part of a token; text and bytes stand as they are."""
    if isinstance(value, str):
        return to_base64url(value.encode())
    return to_base64url(value if isinstance(value, bytes) else json.dumps(value).encode())


def signed(header: object, payload: object, algorithm: str, key: Key) -> str:
    """A token with any header and payload, and a signature by the algorithm, whatever the header says."""
    content = f"{part(header)}.{part(payload)}"
    return f"{content}.{to_base64url(_MODELS[algorithm].sign(content.encode(), key))}"


class Signer:
    """A key by the name of `kid`, and the tokens that it signs for one tenant."""

    def __init__(self, tenant: str, kid: str = "k1", algorithm: str = "EdDSA") -> None:
        self.tenant = tenant
        self.kid = kid
        self.algorithm = algorithm
        self.key = new_key(algorithm)

    def declared(self) -> VerificationKey:
        """As the tenant declares it."""
        return VerificationKey(kid=self.kid, algorithm=self.algorithm, jwk=public(self.key))

    def jwk(self) -> dict[str, Any]:
        """As a JWK Set holds it."""
        members: dict[str, Any] = json.loads(public(self.key))
        return members | {"kid": self.kid, "alg": self.algorithm}

    def token(self, user: str, lifetime_s: float = 600, **claims: Any) -> str:
        """A token of a user with an id of its own, issued now; a claim that is ... is left out."""
        now_s = time.time()
        said = {
            "sub": user,
            "tenant": self.tenant,
            "iat": now_s,
            "exp": now_s + lifetime_s,
            "jti": f"{self.kid}-{next(_numbers)}",
        }
        said = {name: value for name, value in (said | claims).items() if value is not ...}
        header = {"alg": self.algorithm, "typ": "JWT", "kid": self.kid}
        return signed(header, said, self.algorithm, self.key)
