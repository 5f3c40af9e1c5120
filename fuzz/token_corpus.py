"""The tenant whose tokens are verified, its keys, and the seeds of the target `verify`.

The keys are deterministic, and used nowhere else.
"""

from __future__ import annotations

import json
from collections.abc import Iterator

from joserfc.jwa import JWS_ALGORITHMS
from joserfc.jwk import ECKey, Key, OctKey, OKPKey
from trunkline.v1.tenant_pb2 import ClientAuth, VerificationKey
from trunkline_runtime.jose import to_base64url

TENANT = "demo"
NOW_S = 1_800_000_000.0

PRIVATE: dict[str, Key] = {
    "HS256": OctKey.import_key(b"not a secret, and 32 bytes long."),
    "ES256": ECKey.derive_key("fuzz", "P-256"),
    "EdDSA": OKPKey.derive_key("fuzz", "Ed25519"),
}
AUTH = ClientAuth(
    keys=[
        VerificationKey(kid=name, algorithm=name, jwk=json.dumps(key.as_dict(private=False)))
        for name, key in PRIVATE.items()
    ],
    audiences=["chat"],
)
_MODELS = {model.name: model for model in JWS_ALGORITHMS if model.name in PRIVATE}

_CLAIMS = {"sub": "ann", "aud": "chat", "exp": NOW_S + 60}
_PERMISSIONS = {
    "agents": ["echo"],
    "platforms": ["web"],
    "conversations": ["person:ann", "group:t"],
    "rights": ["publish"],
}

HEADERS = [
    *(json.dumps({"alg": name, "kid": name, "typ": "JWT"}) for name in PRIVATE),
    '{"alg":"none"}',
    '{"alg":"ES256","crit":["b64"],"b64":false}',
    '{"alg":"HS256","alg":"ES256","kid":"HS256"}',
    '{"alg":"RS256","kid":"../k","jku":"https://a.example"}',
]
PAYLOADS = [
    json.dumps(_CLAIMS),
    json.dumps({**_CLAIMS, "tenant": TENANT, "jti": "t", "iat": 1, "nbf": 1.5, "trunkline": _PERMISSIONS}),
    json.dumps({**_CLAIMS, "aud": ["other", "chat"], "iss": "x", "exp": 1}),
    '{"exp":NaN}',
    '{"exp":1e999,"sub":"\\ud800","sub":[[[]]]}',
    "[]",
]
#: The signed content of valid tokens; any other accepted content is a forgery.
SIGNED = {
    f"{to_base64url(header.encode())}.{to_base64url(payload.encode())}"
    for header in HEADERS[: len(PRIVATE)]
    for payload in PAYLOADS[:2]
}


def sign(header: bytes, payload: bytes, algorithm: str) -> str:
    """A token with any header and payload, and a valid signature."""
    content = f"{to_base64url(header)}.{to_base64url(payload)}"
    return f"{content}.{to_base64url(_MODELS[algorithm].sign(content.encode(), PRIVATE[algorithm]))}"


def verify_seeds() -> Iterator[bytes]:
    """Inputs of the target `verify`: whole tokens, and parts for it to sign."""
    for number, algorithm in enumerate(PRIVATE):
        for header in HEADERS:
            for payload in PAYLOADS:
                token = sign(header.encode(), payload.encode(), algorithm)
                yield bytes((number << 1,)) + token.encode()
                yield bytes((number << 1 | 1,)) + header.encode() + b"\0" + payload.encode()
