"""How JOSE writes things: base64url without padding (RFC 7515, 2), and JSON objects."""

from __future__ import annotations

import base64
import json
import re
from typing import Any, NoReturn

_BASE64URL = re.compile("[A-Za-z0-9_-]*")


def from_base64url(text: str) -> bytes:
    """The bytes. Raises ValueError for any but the one way to write them, so that a text has no twin."""
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
    """The one way to write the bytes."""
    return base64.urlsafe_b64encode(content).rstrip(b"=").decode()


def read_object(content: bytes | str) -> dict[str, Any]:
    """A JSON object in UTF-8, in which no name comes twice, no number is NaN, and all text is Unicode.

    Raises ValueError otherwise; its text goes on after the name of what was read, and shows nothing of it.
    """
    try:
        text = content if isinstance(content, str) else content.decode()
    except UnicodeDecodeError:
        raise ValueError("is not UTF-8") from None
    try:
        value = json.loads(text, object_pairs_hook=_members, parse_constant=_no_constant)
        if "\\u" in text:
            # Half a surrogate pair can be written so, and is no text.
            json.dumps(value, ensure_ascii=False).encode()
    except _Twice:
        raise ValueError("names one thing twice") from None
    except (ValueError, RecursionError):
        raise ValueError("is not JSON") from None
    if not isinstance(value, dict):
        raise ValueError("is not a JSON object")
    return value


class _Twice(Exception):
    """A name comes twice in an object."""


def _members(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise _Twice
    return members


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")
