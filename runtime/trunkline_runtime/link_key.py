"""The key that a router and its edges share."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, SecretStr

#: By this metadata an edge shows it.
METADATA = "trunkline-link-key"

MIN_CHARS, MAX_CHARS = 16, 1024


def _checked(key: SecretStr) -> SecretStr:
    """Raises ValueError, which does not show the key."""
    text = key.get_secret_value()
    is_plain = text.isascii() and text.isprintable() and " " not in text
    if text and not (is_plain and MIN_CHARS <= len(text) <= MAX_CHARS):
        raise ValueError(f"must be {MIN_CHARS} to {MAX_CHARS} printable ASCII characters without blanks")
    return key


#: A setting; empty for none.
LinkKey = Annotated[SecretStr, AfterValidator(_checked)]
