"""Messages with every field set, derived from their descriptors."""

from __future__ import annotations

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

STRUCT = {"text": "é", "list": [1, 2.5, None, True, {"deeper": []}], "null": None}
WELL_KNOWN = {
    "google.protobuf.Struct": [STRUCT],
    "google.protobuf.Timestamp": [{"seconds": 1_738_324_800, "nanos": 7_000_000}],
}
SCALARS: dict[int, object] = {
    FieldDescriptor.TYPE_STRING: "text é \U0001f600",
    FieldDescriptor.TYPE_BYTES: b"\x00\xff\xfe",
    FieldDescriptor.TYPE_BOOL: True,
    FieldDescriptor.TYPE_UINT32: 2**32 - 1,
    FieldDescriptor.TYPE_UINT64: 2**64 - 1,
}


def filled(message: Descriptor) -> list[Message]:
    """Messages that together set every field and every value of every enum below `message`."""
    return [GetMessageClass(message)(**content) for content in contents(message)]


def contents(message: Descriptor) -> list[dict[str, object]]:
    """Constructor arguments of `filled`: each oneof rotates through its fields."""
    if message.full_name in WELL_KNOWN:
        return WELL_KNOWN[message.full_name]
    plain = {field.name: _values(field) for field in message.fields if field.containing_oneof is None}
    branches = [
        [(field.name, value) for field in oneof.fields for value in _values(field)]
        for oneof in message.oneofs
    ]
    rounds = max([len(values) for values in [*plain.values(), *branches]], default=1)
    return [
        {name: values[turn % len(values)] for name, values in plain.items()}
        | dict(branch[turn % len(branch)] for branch in branches)
        for turn in range(rounds)
    ]


def _values(field: FieldDescriptor) -> list[object]:
    if field.message_type is not None and field.message_type.GetOptions().map_entry:
        return [{"key": "value", "": ""}]
    if field.message_type is not None:
        values: list[object] = list(contents(field.message_type))
    elif field.enum_type is not None:
        values = [value.number for value in field.enum_type.values if value.number]
    else:
        values = [SCALARS[field.type]]
    return [values] if field.is_repeated else values
