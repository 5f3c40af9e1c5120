"""Decoding of JSON: to msgspec Structs, then to the nested dicts that a message's constructor takes."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Annotated, Any, Literal, Union

import msgspec
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from trunkline_runtime.enum_names import enum_names
from trunkline_runtime.free_form import count_in_object

from trunkline_edge.dialects.native.json_schema import STRUCT, is_map, is_union

_UINT64_MAX = 2**64 - 1

Read = Callable[[Any], Any]


def input_type(message: Descriptor) -> Any:
    """The msgspec type of a message's JSON form: a Struct, or a union of tagged Structs."""
    if not is_union(message):
        return _struct(message, None)
    return Union[tuple(_struct(field.message_type, field.name) for field in message.fields)]  # noqa: UP007


@cache
def reader(message: Descriptor) -> Read:
    """A function from an instance of `input_type(message)` to the message's content as nested dicts.

    It raises ValueError, with a text for the client, for a value of the right type that is out of range.
    """
    return _union_reader(message) if is_union(message) else _message_reader(message)


@cache
def _struct(message: Descriptor, tag: str | None) -> type[msgspec.Struct]:
    return msgspec.defstruct(
        message.name if tag is None else f"{message.name}_{tag}",
        [(field.name, _field_type(field) | None, None) for field in message.fields],
        tag=tag,
        tag_field=None if tag is None else "type",
        forbid_unknown_fields=True,
        # The decoder builds trees, never cycles.
        gc=False,
    )


def _field_type(field: FieldDescriptor) -> Any:
    if is_map(field):
        return dict[str, str]
    one = _value_type(field)
    return list[one] if field.is_repeated else one  # type: ignore[valid-type]


def _value_type(field: FieldDescriptor) -> Any:
    if field.message_type is not None:
        if field.message_type.full_name == STRUCT:
            return dict[str, Any]
        return input_type(field.message_type)
    if field.enum_type is not None:
        return Literal[tuple(enum_names(field.enum_type).values())]
    match field.type:
        case FieldDescriptor.TYPE_STRING:
            return str
        case FieldDescriptor.TYPE_BYTES:
            return bytes
        case FieldDescriptor.TYPE_BOOL:
            return bool
        case FieldDescriptor.TYPE_UINT32:
            return Annotated[int, msgspec.Meta(ge=0, le=2**32 - 1)]
        case FieldDescriptor.TYPE_UINT64:
            # msgspec has no bound above int64; the reader checks the upper one.
            return Annotated[int, msgspec.Meta(ge=0)]
    raise TypeError(f"{field.full_name} has a type without a JSON form")


def _union_reader(message: Descriptor) -> Read:
    fields = {
        _struct(field.message_type, field.name): (field.name, _message_reader(field.message_type))
        for field in message.fields
    }

    def read(value: msgspec.Struct) -> dict[str, Any]:
        name, read_field = fields[type(value)]
        return {name: read_field(value)}

    return read


@cache
def _message_reader(message: Descriptor) -> Read:
    conversions = [(field.name, convert) for field in message.fields if (convert := _field_reader(field))]
    oneofs = [tuple(field.name for field in oneof.fields) for oneof in message.oneofs]

    def read(value: msgspec.Struct) -> dict[str, Any]:
        fields = msgspec.structs.asdict(value)
        for name, convert in conversions:
            if (given := fields[name]) is not None:
                fields[name] = convert(given)
        for names in oneofs:
            if sum(fields[name] is not None for name in names) > 1:
                raise ValueError(f"only one of {', '.join(names)} may be given")
        return fields

    return read


def _field_reader(field: FieldDescriptor) -> Read | None:
    """A function that converts a decoded value for the constructor; None if it needs no conversion."""
    if is_map(field):
        return None
    if field.message_type is not None:
        one = _read_object if field.message_type.full_name == STRUCT else reader(field.message_type)
        return (lambda values: [one(value) for value in values]) if field.is_repeated else one
    if field.enum_type is not None:
        return {name: number for number, name in enum_names(field.enum_type).items()}.__getitem__
    if field.type == FieldDescriptor.TYPE_UINT64:
        return _uint64_reader(field.name)
    return None


def _read_object(value: dict[str, Any]) -> dict[str, Any]:
    count_in_object(value)
    return value


def _uint64_reader(name: str) -> Read:
    def read(value: int) -> int:
        if value > _UINT64_MAX:
            raise ValueError(f"{name} must be at most {_UINT64_MAX}")
        return value

    return read
