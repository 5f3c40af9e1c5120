"""Texts that the database can hold."""

from __future__ import annotations

#: The highest bigint. Ids have 64 bits in the contract.
HIGHEST_ID = (1 << 63) - 1


def is_storable(*texts: str) -> bool:
    """Return whether these texts can be parameters. No row has any other text, so it matches nothing.

    PostgreSQL has no NUL in texts, and UTF-8 no surrogates.
    """
    return all("\0" not in text and (text.isascii() or _is_utf8(text)) for text in texts)


def utf8_prefix(text: str) -> str:
    """Return the beginning of a text up to the first surrogate."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        return text[: error.start]
    return text


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
