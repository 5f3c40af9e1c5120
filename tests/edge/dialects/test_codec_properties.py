"""Properties of native codecs for arbitrary payloads and frames."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from hypothesis import given, settings
from hypothesis import strategies as st
from trunkline.v1.frame_pb2 import ClientFrame, ServerFrame
from trunkline_edge.dialects.codec import Codec, FrameRefused
from trunkline_edge.dialects.native.handshake import CODECS
from trunkline_edge.dialects.native.json_output import writer

JSON = CODECS["trunkline.v1.json"]

codecs = pytest.mark.parametrize("codec", CODECS.values(), ids=CODECS.keys())

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
# Adding 0.0 turns -0.0 into zero, as JSON does.
NUMBER = st.floats(allow_nan=False, allow_infinity=False).map(lambda number: number + 0.0)
FREE_FORM = st.recursive(
    st.none() | st.booleans() | NUMBER | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=6,
)
SCALARS: dict[int, st.SearchStrategy[Any]] = {
    FieldDescriptor.TYPE_STRING: TEXT,
    FieldDescriptor.TYPE_BYTES: st.binary(max_size=8),
    FieldDescriptor.TYPE_BOOL: st.booleans(),
    FieldDescriptor.TYPE_UINT32: st.integers(0, 2**32 - 1),
    FieldDescriptor.TYPE_UINT64: st.integers(0, 2**64 - 1),
}


def content(message: Descriptor) -> st.SearchStrategy[dict[str, Any]]:
    """Arbitrary constructor arguments of a message."""
    if message.full_name == "google.protobuf.Struct":
        return st.dictionaries(TEXT, FREE_FORM, max_size=3)
    if message.full_name == "google.protobuf.Timestamp":
        # The range of a Timestamp.
        seconds = st.integers(-62_135_596_800, 253_402_300_799)
        return st.fixed_dictionaries({"seconds": seconds, "nanos": st.integers(0, 999_999_999)})
    plain = {field.name: value(field) for field in message.fields if field.containing_oneof is None}
    strategy = st.fixed_dictionaries({}, optional=plain)
    for oneof in message.oneofs:
        branches = [st.fixed_dictionaries({field.name: value(field)}) for field in oneof.fields]
        strategy = st.tuples(strategy, st.one_of(branches)).map(lambda two: two[0] | two[1])
    return strategy


def value(field: FieldDescriptor) -> st.SearchStrategy[Any]:
    if field.message_type is not None and field.message_type.GetOptions().map_entry:
        return st.dictionaries(TEXT, TEXT, max_size=3)
    if field.message_type is not None:
        one: st.SearchStrategy[Any] = content(field.message_type)
    elif field.enum_type is not None:
        one = st.sampled_from([number.number for number in field.enum_type.values])
    else:
        one = SCALARS[field.type]
    return st.lists(one, max_size=3) if field.is_repeated else one


def frames(frame: type[Any]) -> st.SearchStrategy[Any]:
    return content(frame.DESCRIPTOR).map(lambda fields: frame(**fields))


def decoded_or_refused(codec: Codec, payload: bytes) -> None:
    """Decode a payload; any exception but FrameRefused fails the test."""
    try:
        frame = codec.decode(payload)
    except FrameRefused:
        return
    assert frame.WhichOneof("frame")


@codecs
@given(payload=st.binary(max_size=64))
@settings(deadline=None)
def test_arbitrary_bytes_are_decoded_or_refused(codec: Codec, payload: bytes) -> None:
    decoded_or_refused(codec, payload)


KEYS = st.sampled_from(
    ["type", "id", "parts", "text", "conversation", "kind", "position", "seq", "data", "before", "after"]
)
WORDS = st.sampled_from([*ClientFrame.DESCRIPTOR.fields_by_name, "text", "custom", "person"])
ANY_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | WORDS,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(KEYS | st.text(max_size=8), inner, max_size=6)
    ),
    max_leaves=20,
)


@given(
    payload=ANY_JSON | st.fixed_dictionaries({"type": WORDS}, optional={"data": ANY_JSON, "parts": ANY_JSON})
)
@settings(deadline=None, max_examples=300)
def test_arbitrary_json_is_decoded_or_refused(payload: object) -> None:
    decoded_or_refused(JSON, json.dumps(payload).encode())


@given(frame=frames(ClientFrame), position=st.integers(0, 200), byte=st.integers(0, 255))
@settings(deadline=None)
def test_a_frame_with_one_byte_changed_is_decoded_or_refused(
    frame: ClientFrame, position: int, byte: int
) -> None:
    payload = bytearray(msgspec.json.encode(TO_JSON(frame)))
    payload[position % len(payload)] = byte
    decoded_or_refused(JSON, bytes(payload))


TO_JSON = writer(ClientFrame.DESCRIPTOR)
CLIENT_ENCODERS: dict[str, Callable[[ClientFrame], bytes]] = {
    "trunkline.v1.json": lambda frame: msgspec.json.encode(TO_JSON(frame)),
    "trunkline.v1.proto": lambda frame: frame.SerializeToString(),
}


@codecs
@given(frame=frames(ClientFrame))
@settings(deadline=None)
def test_any_client_frame_survives(codec: Codec, frame: ClientFrame) -> None:
    assert codec.decode(CLIENT_ENCODERS[codec.name](frame)) == frame


@given(frame=frames(ServerFrame))
@settings(deadline=None)
def test_any_server_frame_has_a_json_form(frame: ServerFrame) -> None:
    assert json.loads(JSON.encode(frame))["type"] == frame.WhichOneof("frame")
