"""JSON Schemas of the contract's messages and enums, following canonical protobuf JSON."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from typing import Any

from google.protobuf.descriptor import Descriptor, EnumDescriptor, FieldDescriptor
from trunkline.v1.comments import COMMENTS
from trunkline_runtime.enum_names import enum_names

from trunkline_edge.http.bindings import FieldPath
from trunkline_edge.http.json_decode import is_map, map_value
from trunkline_edge.http.openapi_limits import Schema, keywords, limits_of, must_be_set

SCHEMAS = "#/components/schemas/"

#: Fields in the path of a request rather than in its body, by their names from the current message on.
PathFields = frozenset[tuple[str, ...]]
NO_PATH_FIELDS: PathFields = frozenset()

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
    """A descriptor's name without the package: the key of its comment."""
    return str(described.full_name.removeprefix("trunkline.v1."))


def comment(described: Any) -> str:
    """The contract's comment on a descriptor; empty for none."""
    return COMMENTS.get(name_of(described), "")


def limits(field: FieldDescriptor) -> str:
    """The limits in a field's comment."""
    return limits_of(comment(field))


def nested_messages(messages: Iterable[Descriptor]) -> set[str]:
    """The full names of these messages and of all messages within them."""
    found: set[str] = set()
    waiting = list(messages)
    while waiting:
        message = waiting.pop()
        if message.full_name not in found:
            found.add(message.full_name)
            waiting += [field.message_type for field in message.fields if field.message_type is not None]
    return found


class SchemaRegistry:
    """Collects the schemas of all referenced messages.

    `requested` are messages that callers send. Others occur in responses only, in which every field without
    presence is set.
    """

    def __init__(self, requested: Collection[str]) -> None:
        self.components: dict[str, Schema] = {}
        self._requested = requested

    def ref(self, message: Descriptor) -> Schema:
        """A reference to the schema of a message."""
        return self._ref(message.name, message, NO_PATH_FIELDS)

    def body(self, name: str, message: Descriptor, path_fields: PathFields) -> Schema:
        """A reference to the schema of a request body, without the fields in its path."""
        found = self._ref(name, message, path_fields)
        self.components[name]["additionalProperties"] = False
        return found

    def field(self, field: FieldDescriptor) -> Schema:
        """The schema of a field."""
        return self._described(field, self._field(field, NO_PATH_FIELDS))

    def is_required(self, path: FieldPath) -> bool:
        """Whether every field on the path must be set."""
        return all(must_be_set(field, limits(field)) for field in path)

    def _ref(self, name: str, message: Descriptor, path_fields: PathFields) -> Schema:
        if name not in self.components:
            self.components[name] = {}  # reserves its place while nested schemas are built
            self.components[name] = self._message(message, path_fields)
        return {"$ref": SCHEMAS + name}

    def _message(self, message: Descriptor, path_fields: PathFields) -> Schema:
        properties: dict[str, Schema] = {}
        required = []
        for field in message.fields:
            if (field.name,) in path_fields:
                continue
            within = frozenset(path[1:] for path in path_fields if path[0] == field.name)
            properties[field.json_name] = self._described(field, self._field(field, within))
            if self._is_required(message, field, within):
                required.append(field.json_name)
        schema: Schema = {"type": "object", "description": _with_oneofs(message)}
        if properties:
            schema["properties"] = properties
        if required:
            schema["required"] = required
        if len(message.oneofs) == 1 and len(message.oneofs[0].fields) == len(message.fields):
            schema["maxProperties"] = 1
        return schema

    def _is_required(self, message: Descriptor, field: FieldDescriptor, path_fields: PathFields) -> bool:
        if message.full_name not in self._requested:
            return not field.has_presence
        if not must_be_set(field, limits(field)):
            return False
        # Fields in the path set the message around them.
        inside = field.message_type
        return not path_fields or inside is None or "required" in self._message(inside, path_fields)

    def _field(self, field: FieldDescriptor, path_fields: PathFields) -> Schema:
        bounds = keywords(field, limits(field))
        if is_map(field):
            value = self._one(map_value(field), NO_PATH_FIELDS)
            return {"type": "object", "additionalProperties": value} | bounds
        if field.is_repeated:
            items = self._one(field, NO_PATH_FIELDS) | bounds.pop("items", {})
            return {"type": "array", "items": items} | bounds
        if field.enum_type is not None and bounds:
            lines = _value_lines(field.enum_type, bounds.get("enum"))
            return {"type": "string", "description": "\n".join(lines)} | bounds
        return self._one(field, path_fields) | bounds

    def _one(self, field: FieldDescriptor, path_fields: PathFields) -> Schema:
        message = field.message_type
        if message is not None:
            if message.full_name in _WELL_KNOWN:
                return dict(_WELL_KNOWN[message.full_name])
            without = "".join(name.title() for path in sorted(path_fields) for name in path)
            name = f"{message.name}Without{without}" if without else message.name
            return self._ref(name, message, path_fields)
        if field.enum_type is not None:
            return self._enum(field.enum_type)
        return dict(_BYTES if field.type == FieldDescriptor.TYPE_BYTES else _SCALARS[field.cpp_type])

    def _enum(self, enum: EnumDescriptor) -> Schema:
        if enum.name not in self.components:
            # Short names are described only: with both, generators give two values one name.
            self.components[enum.name] = {
                "type": "string",
                "description": "\n".join([comment(enum), "", *_value_lines(enum)]),
                "enum": [each.name for each in enum.values],
            }
        return {"$ref": SCHEMAS + enum.name}

    def _described(self, field: FieldDescriptor, schema: Schema) -> Schema:
        texts = [text for text in (comment(field), schema.get("description", "")) if text]
        return schema | {"description": "\n\n".join(texts)} if texts else schema


def _value_lines(enum: EnumDescriptor, names: Collection[str] | None = None) -> Iterator[str]:
    """A line of Markdown for each value, or those of `names`, with comment and short name."""
    short = enum_names(enum)
    for each in enum.values:
        if names is not None and each.name not in names:
            continue
        also = f", in requests also `{short[each.number]}`" if each.number in short else ""
        yield f"- `{each.name}`{also}: {COMMENTS.get(f'{enum.name}.{each.name}', '')}"


def _with_oneofs(message: Descriptor) -> str:
    """A message's comment, with its sets of mutually exclusive fields."""
    texts = [comment(message)]
    for oneof in message.oneofs:
        names = ", ".join(f"`{field.json_name}`" for field in oneof.fields)
        about = COMMENTS.get(f"{message.name}.{oneof.name}", "")
        texts.append(f"At most one of {names}. {about}".rstrip())
    return "\n\n".join(text for text in texts if text)
