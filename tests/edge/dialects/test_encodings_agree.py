"""JSON and protobuf cover the same fields."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from google.protobuf.message import Message
from trunkline.v1.frame_pb2 import ClientFrame, ServerFrame
from trunkline_edge.dialects.codec import Framing
from trunkline_edge.dialects.native.handshake import CODECS, DEFAULT
from trunkline_edge.dialects.native.json_output import writer

from tests.edge.dialects.filled_messages import STRUCT, filled

JSON, PROTO = CODECS["trunkline.v1.json"], CODECS["trunkline.v1.proto"]

CLIENT_FRAMES = filled(ClientFrame.DESCRIPTOR)
SERVER_FRAMES = filled(ServerFrame.DESCRIPTOR)


def kind_of(frame: Message) -> str:
    return frame.WhichOneof("frame")


@pytest.mark.parametrize("frame", CLIENT_FRAMES, ids=kind_of)
def test_every_field_of_a_client_frame_survives_json(frame: ClientFrame) -> None:
    as_json = msgspec.json.encode(writer(ClientFrame.DESCRIPTOR)(frame))
    assert JSON.decode(as_json) == frame


@pytest.mark.parametrize("frame", CLIENT_FRAMES, ids=kind_of)
def test_every_field_of_a_client_frame_survives_protobuf(frame: ClientFrame) -> None:
    assert PROTO.decode(frame.SerializeToString()) == frame


@pytest.mark.parametrize("frame", SERVER_FRAMES, ids=kind_of)
def test_every_field_of_a_server_frame_stands_in_its_json(frame: ServerFrame) -> None:
    assert_says_the_same(frame, msgspec.json.decode(JSON.encode(frame)))


@pytest.mark.parametrize("frame", SERVER_FRAMES, ids=kind_of)
def test_every_field_of_a_server_frame_survives_protobuf(frame: ServerFrame) -> None:
    assert ServerFrame.FromString(PROTO.encode(frame)) == frame


def test_the_filled_frames_are_of_every_type() -> None:
    for message, frames in ((ClientFrame, CLIENT_FRAMES), (ServerFrame, SERVER_FRAMES)):
        assert {kind_of(frame) for frame in frames} == set(message.DESCRIPTOR.fields_by_name)


def test_json_is_preferred_and_the_default() -> None:
    assert list(CODECS) == ["trunkline.v1.json", "trunkline.v1.proto"]
    assert DEFAULT is JSON
    assert (JSON.framing, PROTO.framing) == (Framing.TEXT, Framing.BINARY)


def assert_says_the_same(message: Message, as_json: dict[str, Any]) -> None:
    """Compare by the rules of docs/protocol.md, implemented independently of the codec."""
    descriptor = message.DESCRIPTOR
    if descriptor.full_name in {"trunkline.v1.ServerFrame", "trunkline.v1.Part"}:
        kind = message.WhichOneof(descriptor.oneofs[0].name)
        assert as_json["type"] == kind
        inner = {name: value for name, value in as_json.items() if name != "type"}
        assert_says_the_same(getattr(message, kind), inner)
        return
    assert as_json.keys() == {field.name for field, _ in message.ListFields()}
    for field, value in message.ListFields():
        got = as_json[field.name]
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            assert got == dict(value)
        elif field.is_repeated:
            for one, got_one in zip(value, got, strict=True):
                assert_says_the_same(one, got_one)
        elif field.message_type is None:
            assert got == scalar_in_json(field, value)
        elif field.message_type.full_name == "google.protobuf.Struct":
            assert got == STRUCT
        elif field.message_type.full_name == "google.protobuf.Timestamp":
            assert got == "2025-01-31T12:00:00.007Z"
        else:
            assert_says_the_same(value, got)


def scalar_in_json(field: Any, value: Any) -> object:
    if field.enum_type is not None:
        full_name = field.enum_type.values_by_number[value].name
        prefix = field.enum_type.values_by_number[0].name.removesuffix("UNSPECIFIED")
        return full_name.removeprefix(prefix).lower()
    return "AP/+" if isinstance(value, bytes) else value
