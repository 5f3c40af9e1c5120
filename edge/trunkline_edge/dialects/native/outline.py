"""The outline of a binary frame: its items, read as bytes before a message is built from each.

Building a message or a map's entry takes up to twenty times as long as reading its bytes.
"""

from __future__ import annotations

from google.protobuf.descriptor_pb2 import FieldDescriptorProto, FileDescriptorProto
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from trunkline.v1.frame_pb2 import ClientFrame

_PACKAGE = "trunkline.outline"


def count_items(payload: bytes) -> int:
    """Count the items of the repeated fields in a binary ClientFrame. Raises DecodeError."""
    outline = _Outline.FromString(payload)
    return sum(len(items) for _, frame in outline.ListFields() for _, items in frame.ListFields())


def _outline() -> type[Message]:
    """A message like ClientFrame with only the repeated fields of its frames, their items as bytes."""
    file = FileDescriptorProto(name="trunkline/outline.proto", package=_PACKAGE, syntax="proto3")
    whole = file.message_type.add(name=ClientFrame.DESCRIPTOR.name)
    for frame in ClientFrame.DESCRIPTOR.fields:
        assert frame.message_type is not None
        repeated = [field for field in frame.message_type.fields if field.is_repeated]
        if not repeated:
            continue
        outline = file.message_type.add(name=frame.message_type.name)
        for field in repeated:
            item = outline.field.add(name=field.name, number=field.number)
            item.label, item.type = FieldDescriptorProto.LABEL_REPEATED, FieldDescriptorProto.TYPE_BYTES
        member = whole.field.add(name=frame.name, number=frame.number)
        member.label, member.type = FieldDescriptorProto.LABEL_OPTIONAL, FieldDescriptorProto.TYPE_MESSAGE
        member.type_name = f".{_PACKAGE}.{outline.name}"
    pool = DescriptorPool()
    pool.AddSerializedFile(file.SerializeToString())
    return GetMessageClass(pool.FindMessageTypeByName(f"{_PACKAGE}.{whole.name}"))


_Outline = _outline()
