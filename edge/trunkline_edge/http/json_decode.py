"""Decodes canonical protobuf JSON to the nested dicts that a message's constructor takes.

Accepts the same JSON as `google.protobuf.json_format`, which tests verify, with three differences. Errors
name the place and the problem in the JSON. Enum values may have the short names of WebSocket frames. And it
is strict: json_format reads `""` and `[]` as empty messages, and ignores foreign characters in base64.
Strings stand for numbers and enum values too, so the same rules apply to the values in a query.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Callable
from functools import cache
from typing import Any

from google.protobuf.descriptor import Descriptor, EnumDescriptor, FieldDescriptor
from google.protobuf.json_format import ParseDict, ParseError
from google.protobuf.message_factory import GetMessageClass
from trunkline_runtime.enum_names import enum_choices, enum_names

STRUCT = "google.protobuf.Struct"
MAX_INT32, MAX_INT64 = 2**31 - 1, 2**63 - 1

_WHOLE = re.compile(r"-?[0-9]{1,20}")
_KINDS = {dict: "an object", list: "an array", str: "a string", bool: "a boolean", type(None): "null"}

Decode = Callable[[Any], Any]


class Unreadable(Exception):
    """A value does not fit its field; `at` is the path to it, innermost step first."""

    def __init__(self, problem: str, *at: str) -> None:
        super().__init__(problem)
        self.problem = problem
        self.at = list(at)

    @property
    def field(self) -> str:
        """The path to the value, such as `parts[1].text`."""
        steps = (step if step.startswith("[") else f".{step}" for step in reversed(self.at))
        return "".join(steps).removeprefix(".")


@cache
def decoder(message: Descriptor) -> Decode:
    """A function from a message's JSON form to its content as nested dicts. It raises Unreadable."""
    if message.full_name == STRUCT:
        return _decode_struct
    if message.file.package == "google.protobuf":
        return _well_known_decoder(message)
    return _message_decoder(message)


def _message_decoder(message: Descriptor) -> Decode:
    fields: dict[str, tuple[str, str, Decode]] = {}

    def decode(value: Any) -> dict[str, Any]:
        if type(value) is not dict:
            raise _mismatch("an object", value)
        if not fields:
            # Lazily, because messages may contain themselves.
            fields.update(_fields(message))
        content: dict[str, Any] = {}
        chosen: dict[str, str] = {}
        for key, item in value.items():
            if key not in fields:
                raise Unreadable("unknown field", key)
            if item is None:
                continue
            name, oneof, convert = fields[key]
            if name in content:
                raise Unreadable("is set in both spellings", key)
            if oneof and chosen.setdefault(oneof, name) != name:
                raise Unreadable(f"cannot be set together with {chosen[oneof]}", key)
            try:
                content[name] = convert(item)
            except Unreadable as unreadable:
                unreadable.at.append(key)
                raise
        return content

    return decode


def _fields(message: Descriptor) -> dict[str, tuple[str, str, Decode]]:
    found = {}
    for field in message.fields:
        oneof = field.containing_oneof.name if field.containing_oneof else ""
        found[field.name] = found[field.json_name] = (field.name, oneof, _field_decoder(field))
    return found


def _field_decoder(field: FieldDescriptor) -> Decode:
    if is_map(field):
        return _map_decoder(value_decoder(map_value(field)))
    one = value_decoder(field)
    return _list_decoder(one) if field.is_repeated else one


def is_map(field: FieldDescriptor) -> bool:
    """Whether the field is a map."""
    return field.message_type is not None and field.message_type.GetOptions().map_entry


def map_value(field: FieldDescriptor) -> FieldDescriptor:
    """The field of a map's values; the contract's maps all have string keys."""
    entry = field.message_type
    assert entry is not None
    assert entry.fields_by_name["key"].type == FieldDescriptor.TYPE_STRING
    return entry.fields_by_name["value"]


def value_decoder(field: FieldDescriptor) -> Decode:
    """A function from the JSON form of a single value, or of one item, to its content."""
    if field.message_type is not None:
        return decoder(field.message_type)
    if field.enum_type is not None:
        return _enum_decoder(field.enum_type)
    return _SCALARS[field.cpp_type] if field.type != FieldDescriptor.TYPE_BYTES else _decode_bytes


def _list_decoder(one: Decode) -> Decode:
    def decode(value: Any) -> list[Any]:
        if type(value) is not list:
            raise _mismatch("an array", value)
        index = 0
        try:
            found = []
            for index, item in enumerate(value):  # noqa: B007 - the index is for the path
                found.append(one(item))
        except Unreadable as unreadable:
            unreadable.at.append(f"[{index}]")
            raise
        return found

    return decode


def _map_decoder(one: Decode) -> Decode:
    def decode(value: Any) -> dict[str, Any]:
        if type(value) is not dict:
            raise _mismatch("an object", value)
        found = {}
        for key, item in value.items():
            try:
                found[key] = one(item)
            except Unreadable as unreadable:
                unreadable.at.append(f"[{key!r}]")
                raise
        return found

    return decode


def _decode_struct(value: Any) -> dict[str, Any]:
    if type(value) is not dict:
        raise _mismatch("an object", value)
    return value


def _well_known_decoder(message: Descriptor) -> Decode:
    create = GetMessageClass(message)

    def decode(value: Any) -> Any:
        try:
            return ParseDict(value, create())
        except (ParseError, ValueError, TypeError, ArithmeticError) as error:
            raise Unreadable(f"is not a {message.name}: {str(error)[:200]}") from None

    return decode


def _enum_decoder(enum: EnumDescriptor) -> Decode:
    short = enum_names(enum)
    numbers = {name: value.number for name, value in enum.values_by_name.items()}
    numbers |= {name: number for number, name in short.items()}
    choices = enum_choices(enum)
    decode_number = _whole_decoder(-MAX_INT32 - 1, MAX_INT32)

    def decode(value: Any) -> int:
        if type(value) is str and (number := numbers.get(value)) is not None:
            return number
        try:
            return decode_number(value)  # type: ignore[no-any-return]
        except Unreadable:
            raise Unreadable(f"must be one of {choices}") from None

    return decode


def _whole_decoder(low: int, high: int) -> Decode:
    def decode(value: Any) -> int:
        kind = type(value)
        is_text = kind is str and _WHOLE.fullmatch(value)
        if not (is_text or kind is int or (kind is float and value.is_integer())):
            raise _mismatch("a whole number", value)
        number = int(value)
        if not low <= number <= high:
            raise Unreadable(f"must be between {low} and {high}")
        return number

    return decode


def _decode_float(value: Any) -> float:
    if type(value) in (int, float, str):
        try:
            return float(value)
        except (ValueError, OverflowError):
            pass
    raise _mismatch("a number", value)


def _decode_bool(value: Any) -> bool:
    if type(value) is not bool:
        raise _mismatch("true or false", value)
    return value


def _decode_text(value: Any) -> str:
    if type(value) is not str:
        raise _mismatch("a string", value)
    return value


def _decode_bytes(value: Any) -> bytes:
    text = _decode_text(value).replace("-", "+").replace("_", "/").rstrip("=")
    try:
        return base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
    except (binascii.Error, ValueError):
        raise Unreadable("must be base64") from None


_SCALARS: dict[int, Decode] = {
    FieldDescriptor.CPPTYPE_STRING: _decode_text,
    FieldDescriptor.CPPTYPE_BOOL: _decode_bool,
    FieldDescriptor.CPPTYPE_INT32: _whole_decoder(-MAX_INT32 - 1, MAX_INT32),
    FieldDescriptor.CPPTYPE_UINT32: _whole_decoder(0, 2 * MAX_INT32 + 1),
    FieldDescriptor.CPPTYPE_INT64: _whole_decoder(-MAX_INT64 - 1, MAX_INT64),
    FieldDescriptor.CPPTYPE_UINT64: _whole_decoder(0, 2 * MAX_INT64 + 1),
    FieldDescriptor.CPPTYPE_FLOAT: _decode_float,
    FieldDescriptor.CPPTYPE_DOUBLE: _decode_float,
}


def _mismatch(expected: str, value: Any) -> Unreadable:
    given = _KINDS.get(type(value))
    if given is None or (type(value) is str and len(value) <= 40):
        given = repr(value)[:60]
    return Unreadable(f"must be {expected}, not {given}")
