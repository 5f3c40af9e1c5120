"""JSON that others wrote, of any kind, and that is written again as part of something larger."""

from __future__ import annotations

from typing import Any

import msgspec

#: Arrays and objects within each other. Reading and writing are recursive, and must not fail half-way.
MAX_DEPTH = 100


def read_json(text: bytes | str) -> Any:
    """The value. Raises ValueError where it is no JSON, or nested deeper than MAX_DEPTH."""
    try:
        value = msgspec.json.decode(text)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    level = [value]
    for _ in range(MAX_DEPTH):
        level = [inner for container in level for inner in _inside(container)]
        if not level:
            return value
    raise ValueError("nested too deeply")


def value_of(text: str) -> Any:
    """The value of a JSON text, or the text itself where `read_json` refuses it."""
    try:
        return read_json(text)
    except ValueError:
        return text


def _inside(value: Any) -> list[Any]:
    """The arrays and objects in an array or object."""
    values = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return [inner for inner in values if isinstance(inner, (dict, list))]
