"""Signs client tokens like a tenant's own backend."""

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
    """Generate a key; return its private and its public JWK in JSON (for HS256, the secret twice)."""
    key: Key
    if algorithm == "HS256":
        key = OctKey.generate_key(256)
        secret = json.dumps(key.as_dict())
        return secret, secret
    key = ECKey.generate_key("P-256") if algorithm == "ES256" else OKPKey.generate_key("Ed25519")
    return json.dumps(key.as_dict(private=True)), json.dumps(key.as_dict(private=False))


@dataclass(frozen=True, slots=True)
class TokenSigner:
    """Signing key of a tenant."""

    tenant: str
    algorithm: str
    jwk: str

    def token(self, user: str) -> str:
        """Return a token for a user, valid for VALID_FOR_S."""
        claims = {"sub": user, "tenant": self.tenant, "exp": int(time.time()) + VALID_FOR_S}
        header = {"alg": self.algorithm, "typ": "JWT", "kid": self.algorithm}
        with warnings.catch_warnings():
            # joserfc warns about the name EdDSA, which all libraries support.
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
