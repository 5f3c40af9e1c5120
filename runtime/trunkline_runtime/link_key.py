"""The key that a router and its edges share, which authenticates links."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, SecretStr

#: Metadata in which an edge sends the key.
METADATA = "trunkline-link-key"

MIN_CHARS, MAX_CHARS = 16, 1024


def _checked(key: SecretStr) -> SecretStr:
    """Raises ValueError, without the key, for an invalid one."""
    text = key.get_secret_value()
    is_plain = text.isascii() and text.isprintable() and " " not in text
    if text and not (is_plain and MIN_CHARS <= len(text) <= MAX_CHARS):
        raise ValueError(f"must be {MIN_CHARS} to {MAX_CHARS} printable ASCII characters without spaces")
    return key


#: A setting; empty for none.
LinkKey = Annotated[SecretStr, AfterValidator(_checked)]
