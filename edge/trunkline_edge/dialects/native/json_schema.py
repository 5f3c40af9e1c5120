"""Rules of the JSON form of messages, derived from their descriptors by `json_input` and `json_output`.

- A message whose fields are all messages of one oneof is a tagged union: its `type` is the name of the
  field that is set, beside the fields of the inner message.
- Any other oneof is a set of optional fields, of which at most one may be given.
- Names are the contract's. Enums are lower-case names without their prefix. A Timestamp is RFC 3339
  in UTC with milliseconds, bytes are base64, a Struct is an object, a map is an object.
- On input `null` equals an absent field.
- On output an empty field is left out, except bools, lists and the fields in ALWAYS_WRITTEN, whose absence
  would puzzle a reader.
"""

from __future__ import annotations

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.struct_pb2 import Struct
from google.protobuf.timestamp_pb2 import Timestamp
from trunkline.v1.address_pb2 import Address

TIMESTAMP = Timestamp.DESCRIPTOR.full_name
STRUCT = Struct.DESCRIPTOR.full_name
ADDRESS = Address.DESCRIPTOR.full_name

#: Fields in which zero is a value, not absence: an empty log ends at seq 0, and a rollup window of 0 ms
#: means no rollup.
ALWAYS_WRITTEN = frozenset({"trunkline.v1.Position.seq", "trunkline.v1.ConnectedFrame.rollup_ms"})


def is_union(message: Descriptor) -> bool:
    """Whether the message is a tagged union in JSON."""
    return len(message.oneofs) == 1 and all(
        field.containing_oneof is not None and field.message_type is not None for field in message.fields
    )


def is_map(field: FieldDescriptor) -> bool:
    """Whether the field is a `map<…>`."""
    return field.message_type is not None and field.message_type.GetOptions().map_entry
