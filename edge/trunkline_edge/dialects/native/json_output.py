"""Encoding to JSON: from messages to the dicts and lists that msgspec encodes."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any

import msgspec
from google.protobuf.descriptor import Descriptor, FieldDescriptor, OneofDescriptor
from google.protobuf.struct_pb2 import ListValue, Struct, Value
from google.protobuf.timestamp_pb2 import Timestamp
from trunkline.v1.address_pb2 import Address
from trunkline_runtime.enum_names import enum_names

from trunkline_edge.dialects.native.json_schema import (
    ADDRESS,
    ALWAYS_WRITTEN,
    STRUCT,
    TIMESTAMP,
    is_map,
    is_union,
)

#: Type of a tagged union whose set field is newer than this version of the contract.
UNKNOWN = "unknown"

# Integers up to here are exact as doubles.
_EXACT = 2**53

Write = Callable[[Any], dict[str, Any]]


def writer(message: Descriptor) -> Write:
    """A function from a message to its JSON form, ready for msgspec.

    Generates a function per message type, because this runs for every frame and a loop over descriptors
    takes half as long again. For Position it reads

        def fill_Position(message, into):
            if value := message.epoch: into['epoch'] = value
            into['seq'] = message.seq
            return into
    """
    source = _Source()
    name = source.function(message)
    exec("\n".join(source.functions.values()), source.names)
    fill = source.names[name]
    return lambda value: fill(value, {})


class _Source:
    """Source of the functions, generated from descriptors only."""

    def __init__(self) -> None:
        self.functions: dict[str, str] = {}
        #: Globals of the functions.
        self.names: dict[str, Any] = {"timestamp_text": timestamp_text, "json_object": json_object}

    def function(self, message: Descriptor) -> str:
        """The name of the function that fills a dict with a message's fields."""
        name = f"fill_{message.name}"
        if name not in self.functions:
            self.functions[name] = ""  # reserves its place while the functions it calls are generated
            lines = [self._statement(field) for field in message.fields if field.containing_oneof is None]
            for oneof in message.oneofs:
                lines += self._branches(oneof, union=is_union(message))
            body = "".join(f"    {line}\n" for line in [*lines, "return into"])
            self.functions[name] = f"def {name}(message, into):\n{body}"
        return name

    def _statement(self, field: FieldDescriptor) -> str:
        name, got = field.name, f"message.{field.name}"
        if is_map(field):
            return f"if value := {got}: into[{name!r}] = dict(value)"
        if field.is_repeated:
            return f"into[{name!r}] = [{self._value(field, 'value')} for value in {got}]"
        if field.has_presence:
            return f"if message.HasField({name!r}): into[{name!r}] = {self._value(field, got)}"
        if field.enum_type is not None:
            # A value newer than this version of the contract is left out.
            return f"if value := {self._value(field, got)}: into[{name!r}] = value"
        if field.type == FieldDescriptor.TYPE_BOOL or field.full_name in ALWAYS_WRITTEN:
            return f"into[{name!r}] = {got}"
        return f"if value := {got}: into[{name!r}] = value"

    def _branches(self, oneof: OneofDescriptor, *, union: bool) -> list[str]:
        lines = [f"kind = message.WhichOneof({oneof.name!r})"]
        for number, field in enumerate(oneof.fields):
            lines.append(f"{'elif' if number else 'if'} kind == {field.name!r}:")
            got = f"message.{field.name}"
            if union and field.message_type is not None:
                lines.append(f"    into['type'] = kind; {self.function(field.message_type)}({got}, into)")
            else:
                lines.append(f"    into[kind] = {self._value(field, got)}")
        return [*lines, f"else: into['type'] = {UNKNOWN!r}"] if union else lines

    def _value(self, field: FieldDescriptor, got: str) -> str:
        """The expression for the JSON form of one value of a field."""
        if field.enum_type is not None:
            table = f"names_{field.enum_type.name}"
            self.names[table] = enum_names(field.enum_type).get
            return f"{table}({got})"
        if field.message_type is None:
            return got
        if field.message_type.full_name == TIMESTAMP:
            return f"timestamp_text({got})"
        if field.message_type.full_name == STRUCT:
            return f"json_object({got})"
        function = self.function(field.message_type)
        if field.message_type.full_name == ADDRESS:
            self.names["address_text"] = _cached(lambda address: self.names[function](address, {}))
            return f"address_text({got}.SerializeToString(deterministic=True))"
        return f"{function}({got}, {{}})"


def _cached(fill: Write) -> Callable[[bytes], msgspec.Raw]:
    """Caches the JSON of serialized addresses: few distinct ones occur, one in each message."""

    @lru_cache(maxsize=4096)
    def address_text(serialized: bytes) -> msgspec.Raw:
        return msgspec.Raw(msgspec.json.encode(fill(Address.FromString(serialized))))

    return address_text


def timestamp_text(timestamp: Timestamp) -> str:
    """RFC 3339 in UTC with milliseconds, such as `2025-01-31T12:00:00.000Z`."""
    return f"{_second_text(timestamp.seconds)}.{timestamp.nanos // 1_000_000:03}Z"


@lru_cache(maxsize=64)
def _second_text(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).replace(tzinfo=None).isoformat()


def json_object(struct: Struct) -> dict[str, Any]:
    """A Struct's content. A value without a kind is null; NaN and infinity become null when encoded."""
    return {key: _json_value(value) for key, value in struct.fields.items()}


def _json_value(value: Value) -> Any:
    match value.WhichOneof("kind"):
        case "string_value":
            return value.string_value
        case "number_value":
            number = value.number_value
            return int(number) if abs(number) <= _EXACT and number.is_integer() else number
        case "bool_value":
            return value.bool_value
        case "struct_value":
            return json_object(value.struct_value)
        case "list_value":
            return _json_list(value.list_value)
    return None


def _json_list(values: ListValue) -> list[Any]:
    return [_json_value(value) for value in values.values]
