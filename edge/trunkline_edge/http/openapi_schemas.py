"""The contract's messages and enums as JSON Schema, by the rules of canonical protobuf JSON."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

from google.protobuf.descriptor import Descriptor, EnumDescriptor, FieldDescriptor
from trunkline.v1.comments import COMMENTS

from trunkline_edge.http.bindings import FieldPath
from trunkline_edge.http.json_decode import is_map, map_value
from trunkline_edge.http.openapi_limits import Schema, keywords, limits_of, must_be_set

SCHEMAS = "#/components/schemas/"

#: Fields that stand in the path of a request, by their names from the message at hand downwards.
Elsewhere = frozenset[tuple[str, ...]]
NOWHERE: Elsewhere = frozenset()

_WELL_KNOWN: dict[str, Schema] = {
    "google.protobuf.Timestamp": {"type": "string", "format": "date-time"},
    "google.protobuf.Duration": {"type": "string", "pattern": r"^-?\d+(\.\d{1,9})?s$"},
    "google.protobuf.FieldMask": {"type": "string", "pattern": r"^([a-zA-Z0-9.]+(,[a-zA-Z0-9.]+)*)?$"},
    "google.protobuf.Struct": {"type": "object"},
}
_UINT32 = {"type": "integer", "format": "uint32", "minimum": 0, "maximum": 2**32 - 1}
_UINT64 = {"type": "string", "format": "uint64", "pattern": "^[0-9]{1,20}$"}
_INT64 = {"type": "string", "format": "int64", "pattern": "^-?[0-9]{1,19}$"}
_SCALARS: dict[int, Schema] = {
    FieldDescriptor.CPPTYPE_STRING: {"type": "string"},
    FieldDescriptor.CPPTYPE_BOOL: {"type": "boolean"},
    FieldDescriptor.CPPTYPE_INT32: {"type": "integer", "format": "int32"},
    FieldDescriptor.CPPTYPE_UINT32: _UINT32,
    FieldDescriptor.CPPTYPE_INT64: _INT64,
    FieldDescriptor.CPPTYPE_UINT64: _UINT64,
    FieldDescriptor.CPPTYPE_FLOAT: {"type": "number", "format": "float"},
    FieldDescriptor.CPPTYPE_DOUBLE: {"type": "number", "format": "double"},
}
_BYTES = {"type": "string", "contentEncoding": "base64", "pattern": "^[A-Za-z0-9+/_-]*={0,2}$"}


def name_of(described: Any) -> str:
    """A descriptor's name without the package, by which comments are found."""
    return str(described.full_name.removeprefix("trunkline.v1."))


def comment(described: Any) -> str:
    """What the contract says about something; empty for nothing."""
    return COMMENTS.get(name_of(described), "")


def limits(field: FieldDescriptor) -> str:
    """The limits of a field as its comment states them."""
    return limits_of(comment(field))


def taken(messages: Iterable[Descriptor]) -> set[str]:
    """The names of all messages that are taken within these."""
    found: set[str] = set()
    waiting = list(messages)
    while waiting:
        message = waiting.pop()
        if message.full_name not in found:
            found.add(message.full_name)
            waiting += [field.message_type for field in message.fields if field.message_type is not None]
    return found


class Schemas:
    """Gathers the schemas of all messages that are referred to.

    `requested` are messages that callers send. All others are only answered, and there each field that
    has no presence is always set.
    """

    def __init__(self, requested: Collection[str]) -> None:
        self.components: dict[str, Schema] = {}
        self._requested = requested

    def ref(self, message: Descriptor) -> Schema:
        """A reference to a message."""
        return self._ref(message.name, message, NOWHERE)

    def body(self, name: str, message: Descriptor, elsewhere: Elsewhere) -> Schema:
        """A reference to a request without what is in its path."""
        found = self._ref(name, message, elsewhere)
        self.components[name]["additionalProperties"] = False
        return found

    def field(self, field: FieldDescriptor) -> Schema:
        """A field of a message."""
        return self._described(field, self._field(field, NOWHERE))

    def is_required(self, path: FieldPath) -> bool:
        """Each on the way to a field must be set."""
        return all(must_be_set(field, limits(field)) for field in path)

    def _ref(self, name: str, message: Descriptor, elsewhere: Elsewhere) -> Schema:
        if name not in self.components:
            self.components[name] = {}  # keeps its place while those within are made
            self.components[name] = self._message(message, elsewhere)
        return {"$ref": SCHEMAS + name}

    def _message(self, message: Descriptor, elsewhere: Elsewhere) -> Schema:
        properties: dict[str, Schema] = {}
        required = []
        for field in message.fields:
            if (field.name,) in elsewhere:
                continue
            within = frozenset(path[1:] for path in elsewhere if path[0] == field.name)
            properties[field.json_name] = self._described(field, self._field(field, within))
            if self._is_there(message, field, within):
                required.append(field.json_name)
        schema: Schema = {"type": "object", "description": _with_oneofs(message)}
        if properties:
            schema["properties"] = properties
        if required:
            schema["required"] = required
        if len(message.oneofs) == 1 and len(message.oneofs[0].fields) == len(message.fields):
            schema["maxProperties"] = 1
        return schema

    def _is_there(self, message: Descriptor, field: FieldDescriptor, elsewhere: Elsewhere) -> bool:
        if message.full_name not in self._requested:
            return not field.has_presence
        if not must_be_set(field, limits(field)):
            return False
        # What is in the path sets the message around it.
        inside = field.message_type
        return not elsewhere or inside is None or "required" in self._message(inside, elsewhere)

    def _field(self, field: FieldDescriptor, elsewhere: Elsewhere) -> Schema:
        bounds = keywords(field, limits(field))
        if is_map(field):
            value = self._one(map_value(field), NOWHERE)
            return {"type": "object", "additionalProperties": value} | bounds
        if field.is_repeated:
            items = self._one(field, NOWHERE) | bounds.pop("items", {})
            return {"type": "array", "items": items} | bounds
        if field.enum_type is not None and bounds:
            return {"type": "string"} | bounds
        return self._one(field, elsewhere) | bounds

    def _one(self, field: FieldDescriptor, elsewhere: Elsewhere) -> Schema:
        message = field.message_type
        if message is not None:
            if message.full_name in _WELL_KNOWN:
                return dict(_WELL_KNOWN[message.full_name])
            without = "".join(name.title() for path in sorted(elsewhere) for name in path)
            name = f"{message.name}Without{without}" if without else message.name
            return self._ref(name, message, elsewhere)
        if field.enum_type is not None:
            return self._enum(field.enum_type)
        return dict(_BYTES if field.type == FieldDescriptor.TYPE_BYTES else _SCALARS[field.cpp_type])

    def _enum(self, enum: EnumDescriptor) -> Schema:
        if enum.name not in self.components:
            about = {each.name: COMMENTS.get(f"{enum.name}.{each.name}", "") for each in enum.values}
            values = [f"- `{name}`: {text}" for name, text in about.items()]
            self.components[enum.name] = {
                "type": "string",
                "description": "\n".join([comment(enum), "", *values]),
                "enum": list(about),
            }
        return {"$ref": SCHEMAS + enum.name}

    def _described(self, field: FieldDescriptor, schema: Schema) -> Schema:
        text = comment(field)
        return schema | {"description": text} if text else schema


def _with_oneofs(message: Descriptor) -> str:
    """A message's comment, and which of its fields exclude each other."""
    texts = [comment(message)]
    for oneof in message.oneofs:
        names = ", ".join(f"`{field.json_name}`" for field in oneof.fields)
        about = COMMENTS.get(f"{message.name}.{oneof.name}", "")
        texts.append(f"At most one of {names}. {about}".rstrip())
    return "\n\n".join(text for text in texts if text)
