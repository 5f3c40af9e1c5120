"""The native protocol in protobuf: each binary WebSocket message is a ClientFrame or ServerFrame."""

from __future__ import annotations

from google.protobuf.message import DecodeError
from trunkline.v1 import catalogue
from trunkline.v1.frame_pb2 import ClientFrame, ServerFrame
from trunkline_runtime.free_form import UnfitValue, count_in_struct
from trunkline_runtime.message_outline import LONG_VALUE_TAG, VALUE_TAG, TooManyItems, check_items

from trunkline_edge.dialects.codec import (
    FREE_VALUES,
    MAX_ID_CHARACTERS,
    Codec,
    Decoded,
    FrameRefused,
    Framing,
    too_many_values,
)
from trunkline_edge.dialects.json_text import MAX_FRAME_VALUES

#: The numbers of frames whose first field is their id.
_WITH_ID = frozenset(
    field.number
    for field in ClientFrame.DESCRIPTOR.fields
    if field.message_type is not None
    and (id_field := field.message_type.fields_by_name.get("id")) is not None
    if id_field.number == 1
)
#: The tag of that field.
_ID_TAG = 0x0A

#: Items of a frame, beyond which nothing is built from them: more than any valid one has, because lines of
#: text in a Struct count.
MAX_ITEMS = 2 * MAX_FRAME_VALUES


class NativeProto(Codec):
    """The codec `trunkline.v1.proto`."""

    name = "trunkline.v1.proto"
    rejects_unauthorized_by_http = True
    framing = Framing.BINARY

    def decode(self, payload: bytes, binary: bool = False) -> ClientFrame:
        """See Codec. Drops fields newer than this version of the contract."""
        try:
            # An item takes at least two bytes.
            if len(payload) > 2 * MAX_ITEMS:
                check_items(ClientFrame.DESCRIPTOR, payload, MAX_ITEMS)
            frame = ClientFrame.FromString(payload)
        except TooManyItems as too_many:
            raise too_many_values(too_many.items, self.frame_id(payload)) from None
        except DecodeError:
            # An invalid string is one cause.
            raise _malformed("not a binary ClientFrame in UTF-8", self.frame_id(payload)) from None
        if frame.WhichOneof("frame") is None:
            entry = catalogue.UNKNOWN_FRAME_TYPE
            number = f"#{_varint(payload, 0)[0] >> 3}" if payload else "(none)"
            raise FrameRefused(entry, entry.sentence(type=number))
        # Unknown groups can be nested too, and would count in the link's batch.
        frame.DiscardUnknownFields()
        try:
            values = _count_in_structs(frame)
        except UnfitValue as unfit:
            raise _malformed(
                f"a free-form value {unfit.problem}", self.frame_id(payload), unfit.values
            ) from None
        if values > MAX_FRAME_VALUES:
            raise too_many_values(values, self.frame_id(payload))
        return frame

    def frame_id(self, payload: bytes, binary: bool = True) -> str:
        """See Codec. Finds an id that is the first field, as every library writes it."""
        try:
            tag, start = _varint(payload, 0)
            _, start = _varint(payload, start)
            if tag >> 3 not in _WITH_ID or payload[start] != _ID_TAG:
                return ""
            size, start = _varint(payload, start + 1)
            if size > min(len(payload) - start, 4 * MAX_ID_CHARACTERS):
                return ""
            found = payload[start : start + size].decode()
        except (IndexError, ValueError):
            return ""
        return found if len(found) <= MAX_ID_CHARACTERS else ""

    def count_values(self, payload: bytes, decoded: Decoded) -> int:
        """See Codec. Structs are the only values that cost more than their bytes."""
        # Each begins with one of two bytes, which are rare in text.
        if payload.count(VALUE_TAG) + payload.count(LONG_VALUE_TAG) <= FREE_VALUES:
            return 0
        values = _count_in_structs(decoded) if isinstance(decoded, ClientFrame) else 0
        return values if values > FREE_VALUES else 0

    def encode(self, frame: ServerFrame) -> bytes:
        """See Codec."""
        return frame.SerializeToString()


def _count_in_structs(frame: ClientFrame) -> int:
    """Count the values in the Structs of a frame. Raises UnfitValue for one that is over a limit."""
    kind = frame.WhichOneof("frame")
    if kind == "signal":
        return count_in_struct(frame.signal.data)
    if kind not in ("message", "edit"):
        return 0
    parts = frame.message.parts if kind == "message" else frame.edit.parts
    return sum(count_in_struct(part.custom.data) for part in parts if part.HasField("custom"))


def _varint(payload: bytes, start: int) -> tuple[int, int]:
    """A number, and where the next field starts. Raises IndexError or ValueError."""
    number = 0
    for place in range(10):
        byte = payload[start + place]
        number |= (byte & 127) << 7 * place
        if byte < 128:
            return number, start + place + 1
    raise ValueError("no varint")


def _malformed(problem: str, frame_id: str, values: int = 0) -> FrameRefused:
    entry = catalogue.MALFORMED_FRAME
    return FrameRefused(entry, entry.sentence(problem=problem), frame_id, values)
