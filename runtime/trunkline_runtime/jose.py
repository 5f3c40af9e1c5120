"""Encodings of JOSE: base64url without padding (RFC 7515, 2), and strict JSON objects."""

from __future__ import annotations

import base64
import json
import re
from typing import Any, NoReturn

_BASE64URL = re.compile("[A-Za-z0-9_-]*")


def from_base64url(text: str) -> bytes:
    """Decode base64url. Raises ValueError unless the text is the canonical encoding of its bytes."""
    if not _BASE64URL.fullmatch(text):
        raise ValueError("is not base64url")
    try:
        decoded = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
    except ValueError:
        raise ValueError("is not base64url") from None
    if to_base64url(decoded) != text:
        raise ValueError("is not base64url")
    return decoded


def to_base64url(content: bytes) -> str:
    """Encode as base64url, canonically."""
    return base64.urlsafe_b64encode(content).rstrip(b"=").decode()


def is_jwt(text: str) -> bool:
    """Whether a text has the form of a JSON Web Token: a JSON object in base64url, and more after dots."""
    header, _, rest = text.partition(".")
    try:
        return "." in rest and from_base64url(header).lstrip().startswith(b"{")
    except ValueError:
        return False


def read_object(content: bytes | str) -> dict[str, Any]:
    """Decode a JSON object in UTF-8 without duplicate names, NaN, infinity or lone surrogates.

    Raises ValueError otherwise. Its text continues the name of the input, such as "the JWK is not JSON", and
    contains nothing of it.
    """
    try:
        text = content if isinstance(content, str) else content.decode()
    except UnicodeDecodeError:
        raise ValueError("is not UTF-8") from None
    try:
        value = json.loads(text, object_pairs_hook=_members, parse_constant=_no_constant)
        if "\\u" in text:
            # Escapes can write lone surrogates, which are no text.
            json.dumps(value, ensure_ascii=False).encode()
    except _DuplicateName:
        raise ValueError("has a duplicate name") from None
    except (ValueError, RecursionError):
        raise ValueError("is not JSON") from None
    if not isinstance(value, dict):
        raise ValueError("is not a JSON object")
    return value


class _DuplicateName(Exception):
    """An object has two members of one name."""


def _members(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise _DuplicateName
    return members


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")
