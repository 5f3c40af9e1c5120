"""Signs tokens as a tenant's own backend would."""

import functools
import json
import time
import warnings
from dataclasses import dataclass

from joserfc import jwt
from joserfc.errors import SecurityWarning
from joserfc.jwk import ECKey, Key, OctKey, OKPKey

VALID_FOR_S = 3600


def new_key(algorithm: str) -> tuple[str, str]:
    """A new key as JWKs in JSON: the one that signs, and the one that a tenant declares."""
    key: Key
    if algorithm == "HS256":
        key = OctKey.generate_key(256)
        signs = json.dumps(key.as_dict())
        return signs, signs
    key = ECKey.generate_key("P-256") if algorithm == "ES256" else OKPKey.generate_key("Ed25519")
    return json.dumps(key.as_dict(private=True)), json.dumps(key.as_dict(private=False))


@dataclass(frozen=True, slots=True)
class TokenSigner:
    """What tokens are signed with, and for which tenant."""

    tenant: str
    algorithm: str
    jwk: str

    def token(self, user: str) -> str:
        """A token of a user, which is valid for an hour."""
        claims = {"sub": user, "tenant": self.tenant, "exp": int(time.time()) + VALID_FOR_S}
        header = {"alg": self.algorithm, "typ": "JWT", "kid": self.algorithm}
        with warnings.catch_warnings():
            # Of the name EdDSA, which is what everybody understands.
            warnings.simplefilter("ignore", SecurityWarning)
            return jwt.encode(header, claims, _key(self.algorithm, self.jwk), algorithms=[self.algorithm])


@functools.cache
def _key(algorithm: str, jwk: str) -> Key:
    kinds: dict[str, type[OctKey] | type[ECKey] | type[OKPKey]] = {
        "HS256": OctKey,
        "ES256": ECKey,
        "EdDSA": OKPKey,
    }
    return kinds[algorithm].import_key(json.loads(jwk))
