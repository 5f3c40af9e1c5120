"""Canonical protobuf JSON -> the nested dicts that a message's constructor takes.

Takes what `google.protobuf.json_format` takes, which tests hold it to, but says where and what is wrong
in terms of the JSON that was sent, and takes nothing else: json_format reads `""` and `[]` as empty
messages and base64 with anything between. Strings stand for numbers and enum values too, so the values
in a query are read by the same rules.
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

STRUCT = "google.protobuf.Struct"
MAX_INT32, MAX_INT64 = 2**31 - 1, 2**63 - 1

_WHOLE = re.compile(r"-?[0-9]{1,20}")
_KINDS = {dict: "an object", list: "an array", str: "a string", bool: "a boolean", type(None): "null"}

Read = Callable[[Any], Any]


class Unreadable(Exception):
    """A value is not what its field takes; `at` is the way to it, the last step first."""

    def __init__(self, problem: str, *at: str) -> None:
        super().__init__(problem)
        self.problem = problem
        self.at = list(at)

    @property
    def field(self) -> str:
        """The way to the value, such as `parts[1].text`."""
        steps = (step if step.startswith("[") else f".{step}" for step in reversed(self.at))
        return "".join(steps).removeprefix(".")


@cache
def reader(message: Descriptor) -> Read:
    """What makes a message's JSON form its content as nested dicts. Raises Unreadable."""
    if message.full_name == STRUCT:
        return _read_struct
    if message.file.package == "google.protobuf":
        return _well_known_reader(message)
    return _message_reader(message)


def _message_reader(message: Descriptor) -> Read:
    fields: dict[str, tuple[str, str, Read]] = {}

    def read(value: Any) -> dict[str, Any]:
        if type(value) is not dict:
            raise _not("an object", value)
        if not fields:
            # Not sooner: messages may hold themselves.
            fields.update(_fields(message))
        content: dict[str, Any] = {}
        chosen: dict[str, str] = {}
        for key, item in value.items():
            if key not in fields:
                raise Unreadable("there is no such field", key)
            if item is None:
                continue
            name, oneof, convert = fields[key]
            if name in content:
                raise Unreadable("is there in both spellings", key)
            if oneof and chosen.setdefault(oneof, name) != name:
                raise Unreadable(f"cannot be set together with {chosen[oneof]}", key)
            try:
                content[name] = convert(item)
            except Unreadable as unreadable:
                unreadable.at.append(key)
                raise
        return content

    return read


def _fields(message: Descriptor) -> dict[str, tuple[str, str, Read]]:
    found = {}
    for field in message.fields:
        oneof = field.containing_oneof.name if field.containing_oneof else ""
        found[field.name] = found[field.json_name] = (field.name, oneof, _field_reader(field))
    return found


def _field_reader(field: FieldDescriptor) -> Read:
    if is_map(field):
        return _map_reader(one_reader(map_value(field)))
    one = one_reader(field)
    return _list_reader(one) if field.is_repeated else one


def is_map(field: FieldDescriptor) -> bool:
    """The field is a map."""
    return field.message_type is not None and field.message_type.GetOptions().map_entry


def map_value(field: FieldDescriptor) -> FieldDescriptor:
    """What a map holds; the contract's maps all go by strings."""
    entry = field.message_type
    assert entry is not None
    assert entry.fields_by_name["key"].type == FieldDescriptor.TYPE_STRING
    return entry.fields_by_name["value"]


def one_reader(field: FieldDescriptor) -> Read:
    """What makes the JSON form of one item, or of the value of a field that is not repeated, its content."""
    if field.message_type is not None:
        return reader(field.message_type)
    if field.enum_type is not None:
        return _enum_reader(field.enum_type)
    return _SCALARS[field.cpp_type] if field.type != FieldDescriptor.TYPE_BYTES else _read_bytes


def _list_reader(one: Read) -> Read:
    def read(value: Any) -> list[Any]:
        if type(value) is not list:
            raise _not("an array", value)
        index = 0
        try:
            found = []
            for index, item in enumerate(value):  # noqa: B007 - the index is for the path
                found.append(one(item))
        except Unreadable as unreadable:
            unreadable.at.append(f"[{index}]")
            raise
        return found

    return read


def _map_reader(one: Read) -> Read:
    def read(value: Any) -> dict[str, Any]:
        if type(value) is not dict:
            raise _not("an object", value)
        found = {}
        for key, item in value.items():
            try:
                found[key] = one(item)
            except Unreadable as unreadable:
                unreadable.at.append(f"[{key!r}]")
                raise
        return found

    return read


def _read_struct(value: Any) -> dict[str, Any]:
    if type(value) is not dict:
        raise _not("an object", value)
    return value


def _well_known_reader(message: Descriptor) -> Read:
    made = GetMessageClass(message)

    def read(value: Any) -> Any:
        try:
            return ParseDict(value, made())
        except (ParseError, ValueError, TypeError, ArithmeticError) as error:
            raise Unreadable(f"is no {message.name}: {error}") from None

    return read


def _enum_reader(enum: EnumDescriptor) -> Read:
    numbers = {name: value.number for name, value in enum.values_by_name.items()}
    read_number = _whole_reader(-MAX_INT32 - 1, MAX_INT32)

    def read(value: Any) -> int:
        if type(value) is str:
            if (number := numbers.get(value)) is not None:
                return number
            if not _WHOLE.fullmatch(value):
                raise Unreadable(f"must be one of {', '.join(numbers)}")
        return read_number(value)  # type: ignore[no-any-return]

    return read


def _whole_reader(low: int, high: int) -> Read:
    def read(value: Any) -> int:
        kind = type(value)
        is_text = kind is str and _WHOLE.fullmatch(value)
        if not (is_text or kind is int or (kind is float and value.is_integer())):
            raise _not("a whole number", value)
        number = int(value)
        if not low <= number <= high:
            raise Unreadable(f"must be between {low} and {high}")
        return number

    return read


def _read_float(value: Any) -> float:
    if type(value) in (int, float, str):
        try:
            return float(value)
        except (ValueError, OverflowError):
            pass
    raise _not("a number", value)


def _read_bool(value: Any) -> bool:
    if type(value) is not bool:
        raise _not("true or false", value)
    return value


def _read_text(value: Any) -> str:
    if type(value) is not str:
        raise _not("a string", value)
    return value


def _read_bytes(value: Any) -> bytes:
    text = _read_text(value).replace("-", "+").replace("_", "/").rstrip("=")
    try:
        return base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
    except (binascii.Error, ValueError):
        raise Unreadable("must be base64") from None


_SCALARS: dict[int, Read] = {
    FieldDescriptor.CPPTYPE_STRING: _read_text,
    FieldDescriptor.CPPTYPE_BOOL: _read_bool,
    FieldDescriptor.CPPTYPE_INT32: _whole_reader(-MAX_INT32 - 1, MAX_INT32),
    FieldDescriptor.CPPTYPE_UINT32: _whole_reader(0, 2 * MAX_INT32 + 1),
    FieldDescriptor.CPPTYPE_INT64: _whole_reader(-MAX_INT64 - 1, MAX_INT64),
    FieldDescriptor.CPPTYPE_UINT64: _whole_reader(0, 2 * MAX_INT64 + 1),
    FieldDescriptor.CPPTYPE_FLOAT: _read_float,
    FieldDescriptor.CPPTYPE_DOUBLE: _read_float,
}


def _not(wanted: str, value: Any) -> Unreadable:
    given = _KINDS.get(type(value))
    if given is None or (type(value) is str and len(value) <= 40):
        given = repr(value)[:60]
    return Unreadable(f"must be {wanted}, not {given}")
