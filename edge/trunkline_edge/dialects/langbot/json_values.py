"""Decoding of arbitrary JSON that is encoded again inside a larger value."""

from __future__ import annotations

from typing import Any

import msgspec

from trunkline_edge.dialects.json_text import MAX_FRAME_VALUES, count_above, decode_json

_decode = msgspec.json.Decoder().decode

#: Nested arrays and objects. Decoding and encoding recurse, and must not overflow half-way.
MAX_DEPTH = 100


def read_json(text: bytes) -> Any:
    """Decode JSON. Raises ValueError for invalid JSON, and for JSON nested deeper than MAX_DEPTH."""
    try:
        value = decode_json(_decode, text)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    level = [value]
    for _ in range(MAX_DEPTH):
        level = [inner for container in level for inner in _inside(container)]
        if not level:
            return value
    raise ValueError("nested too deeply")


def value_of(text: str) -> Any:
    """Decode JSON, or return the text itself if `read_json` raises or it has more values than a frame may."""
    encoded = text.encode()
    if count_above(encoded, MAX_FRAME_VALUES):
        return text
    try:
        return read_json(encoded)
    except ValueError:
        return text


def _inside(value: Any) -> list[Any]:
    """The arrays and objects in an array or object."""
    values = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return [inner for inner in values if isinstance(inner, (dict, list))]
