"""From the response message of an RPC to canonical protobuf JSON.

Writes what `google.protobuf.json_format` writes with `always_print_fields_with_no_presence`, which tests
hold it to, in less than half the time; a page of messages would keep the edge's loop from its sockets.
"""

from __future__ import annotations

import base64
from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import msgspec
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message

from trunkline_edge.dialects.native.json_output import json_object
from trunkline_edge.http.json_decode import STRUCT, is_map, map_value

Write = Callable[[Any], Any]

TIMESTAMP = "google.protobuf.Timestamp"
_WIDE = (FieldDescriptor.CPPTYPE_INT64, FieldDescriptor.CPPTYPE_UINT64)


def response_json(message: Message, field: FieldDescriptor | None = None) -> bytes:
    """The message, or one field of it, in lowerCamelCase; fields without presence are always there.

    Binary clients can say NaN in a Struct, which JSON cannot: it becomes null, as on WebSockets.
    """
    content = writer(message.DESCRIPTOR)(message)
    return msgspec.json.encode(content if field is None else content.get(field.json_name))


class _EncodeStep(NamedTuple):
    """What to do about one field."""

    name: str
    key: str
    #: It is left out where it is not set.
    has_presence: bool
    #: None where the value is its own JSON form.
    write: Write | None


@cache
def writer(message: Descriptor) -> Write:
    """What makes a message its JSON form, to be encoded."""
    if message.full_name == STRUCT:
        return json_object
    if message.full_name == TIMESTAMP:
        return lambda timestamp: timestamp.ToJsonString()
    if message.file.package == "google.protobuf":
        return MessageToDict
    steps: list[_EncodeStep] = []

    def write(value: Any) -> dict[str, Any]:
        if not steps:
            # Not sooner: messages may hold themselves.
            steps.extend(_step(field) for field in message.fields)
        content = {}
        for name, key, has_presence, convert in steps:
            if has_presence and not value.HasField(name):
                continue
            found = getattr(value, name)
            content[key] = found if convert is None else convert(found)
        return content

    return write


def _step(field: FieldDescriptor) -> _EncodeStep:
    write: Write | None = _one_writer(map_value(field) if is_map(field) else field)
    one = write or _itself
    if is_map(field):
        write = lambda found: {key: one(value) for key, value in found.items()}  # noqa: E731
    elif field.is_repeated:
        write = lambda found: [one(value) for value in found]  # noqa: E731
    return _EncodeStep(field.name, field.json_name, field.has_presence, write)


def _one_writer(field: FieldDescriptor) -> Write | None:
    if field.message_type is not None:
        return writer(field.message_type)
    if field.enum_type is not None:
        names = {value.number: value.name for value in field.enum_type.values}
        # A value that is newer than this edge stays a number.
        return lambda number: names.get(number, number)
    if field.type == FieldDescriptor.TYPE_BYTES:
        return lambda value: base64.b64encode(value).decode()
    return str if field.cpp_type in _WIDE else None


def _itself(value: Any) -> Any:
    return value
