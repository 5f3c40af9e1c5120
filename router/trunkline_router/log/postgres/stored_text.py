"""Texts in columns: PostgreSQL's `text` holds every character but NUL, which a few values may contain.

Names of producers and of API keys, token ids, targets of audit records, and reasons of dead letters may. Each
NUL is stored as an escape sequence; texts without NUL and DLE, nearly all, are stored as they are.
"""

from __future__ import annotations

_ESCAPE = "\x10"
_NUL, _DLE = f"{_ESCAPE}0", f"{_ESCAPE}1"


def to_column(text: str) -> str:
    """Return a text as it is stored."""
    if "\0" in text or _ESCAPE in text:
        return text.replace(_ESCAPE, _DLE).replace("\0", _NUL)
    return text


def from_column(stored: str) -> str:
    """Return a text from its stored form."""
    if _ESCAPE in stored:
        return stored.replace(_NUL, "\0").replace(_DLE, _ESCAPE)
    return stored
