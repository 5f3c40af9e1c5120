"""Properties of the maim.api codec for arbitrary payloads, frames and msg_ids."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from trunkline.v1.frame_pb2 import ClientFrame, ServerFrame
from trunkline.v1.message_pb2 import ROLE_USER
from trunkline_edge.dialects.codec import DirectReply, FrameRefused, SwitchCodec
from trunkline_edge.dialects.maim.api_ids import frame_id, is_hashed, msg_id_of

from tests.edge.dialects.test_codec_properties import ANY_JSON, frames
from tests.edge.dialects.test_maim_api_frames import CODEC, SAID


@given(first=st.text() | st.integers() | st.floats(allow_nan=False), second=st.text() | st.integers())
def test_msg_ids_that_differ_have_ids_that_differ(first: Any, second: Any) -> None:
    differ = (first, type(first)) != (second, type(second))
    assert (frame_id(first) != frame_id(second)) == differ
    if not is_hashed(frame_id(first)) and first != "":
        assert msg_id_of(frame_id(first), ()) == first


KEYS = st.sampled_from(
    ["ver", "msg_id", "type", "meta", "payload", *SAID["payload"], "data", "time", "platform"]
)
KINDS = st.sampled_from(["sys_std", "sys_ack", "custom_x", "sys_x", "x", ""])
ENVELOPES = st.fixed_dictionaries(
    {"type": KINDS | ANY_JSON},
    optional={
        "msg_id": ANY_JSON,
        "payload": ANY_JSON
        | st.dictionaries(KEYS, ANY_JSON)
        | st.fixed_dictionaries({name: ANY_JSON | st.just(value) for name, value in SAID["payload"].items()}),
    },
)


def decoded_or_refused(payload: bytes, binary: bool = False) -> None:
    """Decode a payload; any exception but FrameRefused fails the test."""
    try:
        said = CODEC.decode(payload, binary)
    except FrameRefused:
        return
    if isinstance(said, SwitchCodec):
        said = said.decoded
    if isinstance(said, DirectReply):
        assert json.loads(said.payload)["type"] == "sys_ack"
    elif said is not None:
        assert ClientFrame.FromString(said.SerializeToString()).WhichOneof("frame")


@given(payload=st.binary(max_size=64), binary=st.booleans())
@settings(deadline=None)
def test_arbitrary_bytes_are_decoded_or_refused(payload: bytes, binary: bool) -> None:
    decoded_or_refused(payload, binary)


@given(payload=ANY_JSON | ENVELOPES)
@settings(deadline=None, max_examples=300)
def test_arbitrary_json_is_decoded_or_refused(payload: object) -> None:
    decoded_or_refused(json.dumps(payload).encode())


@pytest.mark.parametrize(
    "value",
    ["[" * 5000 + "]" * 5000, "9" * 5000, "1e999", '"\\ud800"', "NaN", '{"a":' * 400 + "1" + "}" * 400],
)
@pytest.mark.parametrize("at", ["msg_id", "type", "payload"])
def test_json_that_is_hard_to_read_is_decoded_or_refused(at: str, value: str) -> None:
    decoded_or_refused(json.dumps(SAID | {at: "@"}).replace('"@"', value).encode())


@given(payload=ENVELOPES, position=st.integers(0, 300), byte=st.integers(0, 255))
@settings(deadline=None)
def test_an_envelope_with_one_byte_changed_is_decoded_or_refused(
    payload: object, position: int, byte: int
) -> None:
    text = bytearray(json.dumps(payload).encode())
    text[position % len(text)] = byte
    decoded_or_refused(bytes(text))


@given(
    frame=frames(ServerFrame), name=st.sampled_from(["maim.api", "maim.message", "custom_x"]), said=ANY_JSON
)
@settings(deadline=None)
def test_any_server_frame_is_an_envelope_or_nothing(frame: ServerFrame, name: str, said: object) -> None:
    if frame.HasField("message"):
        custom = frame.message.parts.add().custom
        custom.name, custom.json = name, json.dumps(said)
    if payload := CODEC.encode(frame):
        envelope = json.loads(payload)
        assert set(envelope) >= {"ver", "msg_id", "type"}
    assert payload == b"" or not frame.HasField("message") or frame.message.author.role != ROLE_USER
