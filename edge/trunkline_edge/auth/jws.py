"""Parses signed tokens in compact form (RFC 7515, 7.1), without verifying them."""

from __future__ import annotations

import re
from typing import Any, NamedTuple

from trunkline.v1 import catalogue
from trunkline_runtime.jose import from_base64url, read_object
from trunkline_runtime.jwk import ALGORITHMS

from trunkline_edge.auth.key_set import MAX_KID_CHARACTERS

MAX_CHARACTERS = 16384

#: Header parameters that are rejected: each would change the signed content, the key or the content type.
_FORBIDDEN = ("crit", "b64", "zip", "enc", "cty", "jku", "jwk", "x5u", "x5c")

#: Accepted `typ`, in lower case and without `application/` (RFC 8725, 3.11).
_TYPES = frozenset({"jwt", "at+jwt"})

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")


class UnverifiedToken(NamedTuple):
    """A parsed token. Nothing in it is to be trusted before its signature is verified."""

    algorithm: str
    #: The name of its key; None if the header gives none.
    kid: str | None
    #: The signed bytes.
    content: bytes
    payload: bytes
    signature: bytes


def unauthorized(problem: str) -> catalogue.Refused:
    """Refusal of a token."""
    return catalogue.UNAUTHORIZED.refused(problem=problem)


def parse(token: str) -> UnverifiedToken:
    """Parse a token. Raises Refused UNAUTHORIZED for a malformed or unsupported one."""
    if len(token) > MAX_CHARACTERS:
        raise unauthorized(f"the token has more than {MAX_CHARACTERS} characters")
    parts = token.split(".")
    if len(parts) == 5:
        raise unauthorized("the token is encrypted; it must be signed")
    if len(parts) != 3:
        raise unauthorized("the token is not a JSON Web Token in its compact form")
    header, payload, signature = parts
    if not signature:
        raise unauthorized("the token is not signed")
    try:
        algorithm, kid = _read_header(read_object(from_base64url(header)))
    except ValueError as error:
        raise unauthorized(f"the token's header {error}") from None
    try:
        content = header.encode() + b"." + payload.encode()
        return UnverifiedToken(algorithm, kid, content, from_base64url(payload), from_base64url(signature))
    except ValueError as error:
        raise unauthorized(f"the token's payload or signature {error}") from None


def _read_header(header: dict[str, Any]) -> tuple[str, str | None]:
    """The algorithm, and the key's name if present. Raises ValueError like `read_object`."""
    for name in _FORBIDDEN:
        if name in header:
            raise ValueError(f"has `{name}`, which is not supported")
    algorithm = header.get("alg")
    if not isinstance(algorithm, str) or algorithm not in ALGORITHMS:
        raise ValueError(f"has an `alg` other than {', '.join(ALGORITHMS)}")
    kind = header.get("typ", "JWT")
    if not isinstance(kind, str) or kind.lower().removeprefix("application/") not in _TYPES:
        raise ValueError("has a `typ` that is neither JWT nor at+jwt")
    if "kid" not in header:
        return algorithm, None
    kid = header["kid"]
    if not isinstance(kid, str) or not 1 <= len(kid) <= MAX_KID_CHARACTERS or _CONTROL.search(kid):
        raise ValueError(f"has a `kid` that is not 1 to {MAX_KID_CHARACTERS} printable characters")
    return algorithm, kid
