"""Creates valid and invalid tokens, and the settings of a tenant that verifies them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
from joserfc.jwk import Key
from trunkline.v1.catalogue import Refused
from trunkline.v1.tenant_pb2 import ClientAuth, VerificationKey
from trunkline_edge.auth.key_set import KeySet, inline_keys
from trunkline_edge.auth.principal import Principal
from trunkline_edge.auth.tokens import verify

from tests.support.signing import new_key, public
from tests.support.signing import signed as signed_by

NOW_S = 1_800_000_000.0
TENANT = "acme"

#: A private key per algorithm, named after it.
PRIVATE: dict[str, Key] = {each: new_key(each) for each in ("HS256", "RS256", "ES256", "EdDSA")}
ALGORITHMS = list(PRIVATE)

CLAIMS = {"sub": "ann", "aud": "chat", "exp": NOW_S + 60}
AUDIENCES = ["chat", "other"]


def declared(*algorithms: str) -> ClientAuth:
    """ClientAuth with keys for these algorithms, and with audiences."""
    keys = [
        VerificationKey(kid=each, algorithm=each, jwk=public(PRIVATE[each]))
        for each in algorithms or ALGORITHMS
    ]
    return ClientAuth(keys=keys, audiences=AUDIENCES)


AUTH = declared()
KEYS = inline_keys(AUTH)


def signed(header: object, payload: object, algorithm: str = "ES256", key: Key | None = None) -> str:
    """A token with any header and payload, signed with `algorithm` whatever the header says."""
    return signed_by(header, payload, algorithm, key or PRIVATE[algorithm])


def minted(algorithm: str = "ES256", header: Mapping[str, Any] | None = None, **claims: Any) -> str:
    """A valid token with changed claims; `...` leaves a claim out."""
    members = {"alg": algorithm, "typ": "JWT", "kid": algorithm, **(header or {})}
    said = {name: value for name, value in {**CLAIMS, **claims}.items() if value is not ...}
    return signed({name: value for name, value in members.items() if value is not ...}, said, algorithm)


def taken(token: str, auth: ClientAuth = AUTH, keys: KeySet | None = None, now_s: float = NOW_S) -> Principal:
    """Verify a token and return its principal, by default with the tenant's own keys."""
    return verify(token, TENANT, auth, inline_keys(auth) if keys is None else keys, now_s)


def refusal(token: str, auth: ClientAuth = AUTH, keys: KeySet | None = None, now_s: float = NOW_S) -> str:
    """The text of the UNAUTHORIZED; checks that it contains nothing of the token."""
    with pytest.raises(Refused) as caught:
        taken(token, auth, keys, now_s)
    assert caught.value.entry.code == "UNAUTHORIZED"
    text = str(caught.value)
    assert not any(len(each) > 8 and each in text for each in token.split("."))
    text.encode()
    return text
