"""Translates the limits in the contract's comments, after `Limits:`, to keywords of JSON Schema."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from google.protobuf.descriptor import FieldDescriptor

Schema = dict[str, Any]

_LIMITS = re.compile(r"Limits: (.*?)\.(?= |$)", re.DOTALL)

#: Character classes of the contract's alphabets, in the syntax common to ECMAScript and Python.
_ALPHABETS = {
    "no white space, no control characters, no `/`, no `:`": r"[^\s/:\x00-\x1f\x7f-\x9f]",
    "no white space, no control characters": r"[^\s\x00-\x1f\x7f-\x9f]",
    "no control characters": r"[^\x00-\x1f\x7f-\x9f]",
}


def limits_of(comment: str) -> str:
    """The text of a comment's limits, without the full stop; empty for none."""
    found = _LIMITS.search(comment)
    return found[1] if found else ""


def keywords(field: FieldDescriptor, limits: str) -> Schema:
    """The schema keywords for a field's limits. Raises ValueError for an unknown limit."""
    if ", each " in limits or "; each " in limits:
        # The rest applies to the items.
        count, each = re.split(r"[,;] each ", limits, maxsplit=1)
        return keywords(field, count) | {"items": _phrases(field, each)}
    return _phrases(field, limits)


def must_be_set(field: FieldDescriptor, limits: str) -> bool:
    """Whether an unset field would violate the limits."""
    if field.containing_oneof is not None:
        return False
    if limits.startswith("required"):
        return True
    low = re.match(r"(\d+) to \d+", limits)
    return low is not None and int(low[1]) > 0


def _phrases(field: FieldDescriptor, limits: str) -> Schema:
    found: Schema = {}
    for phrase in limits.split("; ") if limits else []:
        found |= _phrase(field, phrase)
    if pattern := found.pop("alphabet", None):
        found["pattern"] = f"^{pattern}{'*' if found.get('minLength', 0) == 0 else '+'}$"
    return found


def _phrase(field: FieldDescriptor, phrase: str) -> Schema:
    if phrase in _ALPHABETS:
        return {"alphabet": _ALPHABETS[phrase]}
    for form, translate in _FORMS:
        if found := re.fullmatch(form, phrase):
            return translate(field, *(int(one) if one.isdigit() else one for one in found.groups()))
    raise ValueError(f"{field.full_name}: openapi_limits.py does not know the limit {phrase!r}")


def _encoded(field: FieldDescriptor, limit: int) -> Schema:
    """Bytes are base64 in JSON. For a message the limit concerns its protobuf encoding, so none applies."""
    return {"maxLength": -(-limit // 3) * 4} if field.type == FieldDescriptor.TYPE_BYTES else {}


def _numbers(field: FieldDescriptor, low: int, high: int) -> Schema:
    if field.enum_type is None:
        return {"minimum": low, "maximum": high}
    return {"enum": [value.name for value in field.enum_type.values if low <= value.number <= high]}


def _named(field: FieldDescriptor) -> Schema:
    values = field.enum_type.values if field.enum_type is not None else ()
    return {"enum": [value.name for value in values if value.number]}


def _from_to(field: FieldDescriptor, first: str, last: str) -> Schema:
    assert field.enum_type is not None
    values = field.enum_type.values_by_name
    return _numbers(field, values[first].number, values[last].number)


_FORMS: list[tuple[str, Callable[..., Schema]]] = [
    (r"(\d+) characters of lower-case hex", lambda field, count: {"pattern": f"^[0-9a-f]{{{count}}}$"}),
    (r"([A-Z_]+) to ([A-Z_]+)", _from_to),
    (r"(\w+(?:, \w+)* or \w+)", lambda field, words: {"enum": re.split(", | or ", words)}),
    # JSON Schema does not limit the depth of a value, nor the values in it.
    (r"required|a named value, or not set|at most \d+ levels deep", lambda field: {}),
    (r"at most \d+ values(?: in `data` together)?", lambda field: {}),
    (r"a named value", _named),
    (r"(\d+) to (\d+) characters", lambda field, low, high: {"minLength": low, "maxLength": high}),
    (r"empty, or \d+ to (\d+) characters", lambda field, high: {"maxLength": high}),
    (r"at most (\d+) characters", lambda field, high: {"maxLength": high}),
    (r"at most (\d+) bytes", _encoded),
    (r"(\d+) to (\d+) items", lambda field, low, high: {"minItems": low, "maxItems": high}),
    (r"at most (\d+) items", lambda field, high: {"maxItems": high}),
    (r"at most (\d+)", lambda field, high: _numbers(field, 0, high)),
    (r"(\d+) to (\d+)", _numbers),
    (r"at most (\d+) entries", lambda field, high: {"maxProperties": high}),
    (
        r"keys of (\d+) to (\d+) characters",
        lambda field, low, high: {"propertyNames": {"minLength": low, "maxLength": high}},
    ),
    (
        r"values of at most (\d+) characters",
        lambda field, high: {"additionalProperties": {"type": "string", "maxLength": high}},
    ),
]
