"""JSON Web Keys that verify tokens: parsing, validation and conversion (RFC 7517, 7518, 8037)."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from typing import Any

from joserfc.errors import JoseError, SecurityWarning
from joserfc.jwk import ECKey, Key, OctKey, OKPKey, RSAKey

from trunkline_runtime.jose import from_base64url, read_object, to_base64url

ALGORITHMS = ("HS256", "RS256", "ES256", "EdDSA")

MIN_SECRET_BYTES = 32
RSA_BITS = range(2048, 8192 + 1)
#: A larger public exponent only makes verification slow.
MAX_EXPONENT_BYTES = 8

_KINDS: dict[str, type[OctKey] | type[RSAKey] | type[ECKey] | type[OKPKey]] = {
    "HS256": OctKey,
    "RS256": RSAKey,
    "ES256": ECKey,
    "EdDSA": OKPKey,
}
_CURVES = {"ES256": "P-256", "EdDSA": "Ed25519"}
_PRIVATE = frozenset({"d", "p", "q", "dp", "dq", "qi", "oth"})
#: Prefixes of public keys and certificates, which are long but not secret.
_PUBLIC_PREFIXES = (b"-----BEGIN ", b"---- BEGIN ", b"ssh-", b"ecdsa-sha2-")


def check_jwk(algorithm: str, jwk: str) -> None:
    """Raises ValueError, without secrets, unless a JWK can verify tokens of the algorithm."""
    key_of(algorithm, jwk)


def key_of(algorithm: str, jwk: str) -> Key:
    """The key of a JWK in JSON. Raises ValueError like `check_jwk`."""
    try:
        members = read_object(jwk)
    except ValueError as error:
        raise ValueError(f"the JWK {error}") from None
    return key_of_members(algorithm, members)


def key_of_members(algorithm: str, members: Mapping[str, Any]) -> Key:
    """The key of a decoded JWK, without metadata, so that equal key material gives equal keys.

    Raises ValueError like `check_jwk`.
    """
    kind = _KINDS.get(algorithm)
    if kind is None:
        raise ValueError(f"the algorithm must be one of {', '.join(ALGORITHMS)}")
    _check_purpose(algorithm, members)
    _check_strength(algorithm, members)
    material = {name: members[name] for name in kind.value_registry if name in members}
    try:
        raw: Any = kind.import_key({**material, "kty": kind.key_type}).raw_value
    except (JoseError, ValueError, TypeError, OverflowError):
        # The library's text may contain secrets.
        raise ValueError(f"the JWK is not a valid {kind.key_type} key") from None
    return kind(raw, raw)


def _check_purpose(algorithm: str, members: Mapping[str, Any]) -> None:
    """Raises ValueError unless the key is a public one of the algorithm's type, for verifying."""
    kind = _KINDS[algorithm].key_type
    if members.get("kty") != kind:
        raise ValueError(f"a JWK for {algorithm} must have the `kty` {kind}")
    if members.get("alg", algorithm) != algorithm:
        raise ValueError(f"the JWK has an `alg` other than {algorithm}")
    if members.get("use", "sig") != "sig":
        raise ValueError("the JWK has a `use` other than sig")
    operations = members.get("key_ops", ["verify"])
    if not isinstance(operations, list) or "verify" not in operations:
        raise ValueError("the JWK has `key_ops` without verify")
    if kind != "oct" and not _PRIVATE.isdisjoint(members):
        raise ValueError("the JWK is a private key; give the public one")
    if members.get("crv") != _CURVES.get(algorithm) and algorithm in _CURVES:
        raise ValueError(f"a JWK for {algorithm} must have the `crv` {_CURVES[algorithm]}")


def _check_strength(algorithm: str, members: Mapping[str, Any]) -> None:
    """Raises ValueError for weak keys and for very large, slow ones. Curves have a single strength."""
    if algorithm == "HS256":
        secret = _bytes_of(members, "k")
        if len(secret) < MIN_SECRET_BYTES:
            raise ValueError(f"the secret has {len(secret)} bytes; at least {MIN_SECRET_BYTES} are needed")
        if secret.lstrip().startswith(_PUBLIC_PREFIXES):
            raise ValueError("the secret is a public key, which is not secret")
    elif algorithm == "RS256":
        bits = int.from_bytes(_bytes_of(members, "n")).bit_length()
        if bits not in RSA_BITS:
            raise ValueError(f"the RSA key has {bits} bits; {RSA_BITS[0]} to {RSA_BITS[-1]} are allowed")
        if len(_bytes_of(members, "e")) > MAX_EXPONENT_BYTES:
            raise ValueError(f"the RSA key's exponent has more than {MAX_EXPONENT_BYTES} bytes")


def _bytes_of(members: Mapping[str, Any], name: str) -> bytes:
    value = members.get(name)
    if not isinstance(value, str):
        raise ValueError(f"the JWK has no `{name}`")
    try:
        return from_base64url(value)
    except ValueError as error:
        raise ValueError(f"the JWK's `{name}` {error}") from None


def jwk_of(algorithm: str, source: str | bytes) -> str:
    """The JWK in JSON of a secret for HS256, or of a public key or certificate in PEM.

    Raises ValueError like `check_jwk`.
    """
    content = source.encode() if isinstance(source, str) else source
    kind = _KINDS.get(algorithm)
    if kind is OctKey:
        members: dict[str, Any] = {"kty": "oct", "k": to_base64url(content)}
    elif kind is None or not content.lstrip().startswith(b"-----BEGIN "):
        raise ValueError(f"for {algorithm} a public key in PEM is needed")
    else:
        members = _members_of_pem(kind, content)
    jwk = json.dumps(members)
    check_jwk(algorithm, jwk)
    return jwk


def _members_of_pem(
    kind: type[RSAKey] | type[ECKey] | type[OKPKey] | type[OctKey], pem: bytes
) -> dict[str, Any]:
    try:
        with warnings.catch_warnings():
            # `check_jwk` rejects weak keys later.
            warnings.simplefilter("ignore", SecurityWarning)
            key = kind.import_key(pem)
        is_private, members = key.is_private, dict(key.as_dict(private=False))
    except (JoseError, ValueError, TypeError, KeyError):
        raise ValueError(f"the PEM holds no usable {kind.key_type} key") from None
    if is_private:
        raise ValueError("the PEM holds a private key; give the public one: openssl pkey -pubout")
    return members


def without_secret(jwk: str) -> str:
    """The JWK without its secret members; an empty one if it is malformed."""
    try:
        members = read_object(jwk)
    except ValueError:
        return "{}"
    return json.dumps({name: members[name] for name in members if name != "k" and name not in _PRIVATE})
