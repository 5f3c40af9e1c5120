"""The outline of a serialized message: its items are counted as bytes, before anything is built from them.

Protobuf builds a message or a map's entry up to fifty times as slowly as it reads the same bytes as a field:
12 MB of a Struct's keys take three seconds.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.descriptor_pb2 import FieldDescriptorProto, FileDescriptorProto
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass
from google.protobuf.struct_pb2 import Struct

_STRUCT = Struct.DESCRIPTOR.full_name

#: The tag of a value in a Struct or ListValue, and the first byte of the same number in more bytes.
VALUE_TAG, LONG_VALUE_TAG = b"\x0a", b"\x8a"


class TooManyItems(ValueError):
    """A message has more items than the limit; `items` are those that were counted."""

    def __init__(self, items: int, limit: int) -> None:
        super().__init__(f"has {items} items; at most {limit} are allowed")
        self.items = items


def check_items(message: Descriptor, serialized: bytes, limit: int) -> None:
    """Raises TooManyItems if a message has more than `limit` items, and DecodeError if it cannot be parsed.

    Items are those of repeated fields and maps at all levels, and the values in Structs; lines of text in a
    Struct count, too.
    """
    items = _Items(limit)
    items.count(message, serialized)


class _Items:
    """A count of items that raises TooManyItems."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._items = 0

    def count(self, message: Descriptor, serialized: bytes) -> None:
        outline = _outline_of(message)
        for field, value in outline.parse(serialized).ListFields():
            inner = outline.inner.get(field.number)
            if not field.is_repeated:
                self._count_in(inner, value)
                continue
            self._add(len(value))
            if inner is not None:
                for item in value:
                    self._count_in(inner, item)

    def _count_in(self, inner: Descriptor | None, serialized: bytes) -> None:
        if inner is None:
            return
        if inner.full_name == _STRUCT:
            # Every value begins with one of two bytes.
            self._add(serialized.count(VALUE_TAG) + serialized.count(LONG_VALUE_TAG))
        elif _outline_of(inner).has_items:
            self.count(inner, serialized)

    def _add(self, items: int) -> None:
        self._items += items
        if self._items > self._limit:
            raise TooManyItems(self._items, self._limit)


class _Outline(NamedTuple):
    parse: Callable[[bytes], Any]
    #: Types of the messages in fields that may have items.
    inner: dict[int, Descriptor]
    has_items: bool


@cache
def _outline_of(message: Descriptor) -> _Outline:
    """The outline of a message type: its repeated fields and its messages, all of them as bytes."""
    file = FileDescriptorProto(name=f"{message.full_name}.outline", package="outline", syntax="proto3")
    outline = file.message_type.add(name=message.name)
    inner: dict[int, Descriptor] = {}
    for field in message.fields:
        is_map = field.message_type is not None and field.message_type.GetOptions().map_entry
        if field.message_type is not None and not is_map and _may_have_items(field.message_type):
            inner[field.number] = field.message_type
        if field.number in inner or (field.is_repeated and field.type in _BY_LENGTH):
            item = outline.field.add(name=field.name, number=field.number)
            item.type = FieldDescriptorProto.TYPE_BYTES
            item.label = (
                FieldDescriptorProto.LABEL_REPEATED
                if field.is_repeated
                else FieldDescriptorProto.LABEL_OPTIONAL
            )
    pool = DescriptorPool()
    pool.AddSerializedFile(file.SerializeToString())
    built: Any = GetMessageClass(pool.FindMessageTypeByName(f"outline.{message.name}"))
    return _Outline(built.FromString, inner, bool(outline.field))


#: Repeated numbers are packed, and no more than their bytes.
_BY_LENGTH = (FieldDescriptor.TYPE_STRING, FieldDescriptor.TYPE_BYTES, FieldDescriptor.TYPE_MESSAGE)


def _may_have_items(message: Descriptor, outer: tuple[Descriptor, ...] = ()) -> bool:
    if message.full_name == _STRUCT:
        return True
    return any(
        (field.is_repeated and field.type in _BY_LENGTH)
        or (
            field.message_type is not None
            and field.message_type not in outer
            and _may_have_items(field.message_type, (*outer, message))
        )
        for field in message.fields
    )
