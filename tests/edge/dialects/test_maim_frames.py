"""The codec of maim_message's tenant protocol: golden frames, and properties for arbitrary input."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import pytest
from google.protobuf import text_format
from hypothesis import given, settings
from hypothesis import strategies as st
from trunkline.v1.frame_pb2 import ClientFrame, MessageFrame, ServerFrame
from trunkline.v1.message_pb2 import CustomPart, Part
from trunkline_edge.dialects.codec import DirectReply, FrameRefused
from trunkline_edge.dialects.maim.messages import MAX_MEDIA_BYTES, MAX_TEXT_CHARACTERS
from trunkline_edge.dialects.maim.tenant import Maim

from tests.edge.dialects.test_codec_properties import ANY_JSON, frames

NOW = datetime(2026, 1, 2, 3, 4, 5, 678_000, UTC)
CODEC = Maim("demo", "echo", "qq", True, lambda: NOW)
#: The error for a client that names no agent.
FLAT = Maim("demo", "echo", "qq", False, lambda: NOW)


def golden(side: str) -> list[tuple[str, str]]:
    """JSON and protobuf text format of the frames from one side."""
    blocks = Path(__file__).with_name("golden_maim.txt").read_text("utf-8").strip().split("\n\n")
    frames = [block.removeprefix(f"{side} ").partition("\n") for block in blocks if block.startswith(side)]
    return [("" if as_json == "-" else as_json, text) for as_json, _, text in frames]


CLIENT, SERVER = golden("client"), golden("server")


@pytest.mark.parametrize(("as_json", "text"), CLIENT, ids=[row[0][:60] for row in CLIENT])
def test_a_client_frame_means_this(as_json: str, text: str) -> None:
    assert CODEC.decode(as_json.encode()) == text_format.Parse(text, ClientFrame())


@pytest.mark.parametrize(("as_json", "text"), SERVER, ids=[row[1][:60] for row in SERVER])
def test_a_server_frame_is_encoded_to_the_letter(as_json: str, text: str) -> None:
    frame = text_format.Parse(text, ServerFrame())
    assert CODEC.encode(frame).decode() == as_json
    if as_json and "agent_id" in json.loads(as_json) and frame.WhichOneof("frame") == "connected":
        assert "agent_id" not in json.loads(FLAT.encode(frame))


def test_connections_of_one_address_share_encodings_and_those_of_two_do_not() -> None:
    assert Maim("demo", "echo", "qq", True, lambda: NOW) == CODEC
    assert hash(Maim("demo", "echo", "qq", True, lambda: NOW)) == hash(CODEC)
    others = [Maim(*place, True, lambda: NOW) for place in (("acme", "echo", "qq"), ("demo", "a", "qq"))]
    assert len({CODEC, FLAT, *others}) == 4


def test_heartbeats_are_answered_with_the_time() -> None:
    timestamp = NOW.timestamp()
    answer = CODEC.decode(b'{"type":"heartbeat","timestamp":1}')
    assert isinstance(answer, DirectReply)
    assert json.loads(answer.payload) == {"type": "heartbeat_response", "timestamp": timestamp}
    assert json.loads(CODEC.heartbeat()) == {"type": "heartbeat", "timestamp": timestamp}


@pytest.mark.parametrize(
    "payload",
    [
        b'{"type":"heartbeat_response","timestamp":1}',
        b'{"type":"auth","token":"a secret that must not get into a log"}',
        b'{"type":"message_result","message_id":"x","success":true}',
        b'{"type":"message_result","message_id":"x"}',
    ],
)
def test_frames_without_content_for_an_agent_are_no_messages(payload: bytes) -> None:
    assert CODEC.decode(payload) is None


@pytest.mark.parametrize(
    ("payload", "binary", "text"),
    [
        (b"", False, "Invalid JSON format"),
        (b"{", False, "Invalid JSON format"),
        (b'{"a":"\xff"}', False, "Invalid JSON format"),
        (b'{"a":NaN}', False, "Invalid JSON format"),
        (b'{"a":' + b"[" * 5000 + b"]" * 5000 + b"}", False, "Invalid JSON format"),
        (b"[]", False, "a JSON object is expected"),
        (b"null", False, "a JSON object is expected"),
        (b'{"type":"ping"}', True, "binary frames are not supported; send JSON as text"),
    ],
)
def test_only_json_objects_in_text_are_accepted(payload: bytes, binary: bool, text: str) -> None:
    with pytest.raises(FrameRefused) as refused:
        CODEC.decode(payload, binary)
    assert str(refused.value) == text


def message_of(payload: bytes) -> MessageFrame:
    frame = CODEC.decode(payload)
    assert isinstance(frame, ClientFrame)
    return frame.message


def test_long_texts_and_large_or_many_media_are_in_the_custom_part_only() -> None:
    large = "A" * (MAX_MEDIA_BYTES * 2)
    segments = [{"type": "text", "data": "é" * (MAX_TEXT_CHARACTERS + 1)}, {"type": "image", "data": large}]
    segments += [{"type": "image", "data": "aGk="}] * 100
    payload = json.dumps({"message_segment": {"type": "seglist", "data": segments}}).encode()
    parts = message_of(payload).parts
    assert len(parts[0].text.text) == MAX_TEXT_CHARACTERS
    assert [part.WhichOneof("content") for part in parts] == ["text", *["image"] * 16, "custom"]
    assert parts[-1].custom.json == payload.decode()


def test_a_segment_may_be_nested_as_deeply_as_json_may_be_read() -> None:
    segment: Any = {"type": "text", "data": "deep"}
    for _ in range(100):
        segment = {"type": "seglist", "data": [segment]}
    assert message_of(json.dumps({"message_segment": segment}).encode()).parts[0].text.text == "deep"


NAMES = st.sampled_from(
    ["type", "message_id", "message_segment", "message_info", "raw_message", "data", "success", "token"]
)
WORDS = st.sampled_from(["seglist", "text", "image", "at", "ping", "heartbeat", "message_result", "auth"])
SEGMENTS = st.recursive(
    st.fixed_dictionaries({"type": WORDS, "data": st.text(max_size=8) | ANY_JSON}),
    lambda inner: st.fixed_dictionaries({"type": st.just("seglist"), "data": st.lists(inner, max_size=4)}),
    max_leaves=8,
)
OBJECTS = st.dictionaries(NAMES | st.text(max_size=4), WORDS | SEGMENTS | ANY_JSON, max_size=6)


@given(
    payload=st.binary(max_size=64) | OBJECTS.map(lambda value: json.dumps(value).encode()),
    binary=st.booleans(),
)
@settings(deadline=None, max_examples=300)
def test_any_payload_is_a_valid_frame_an_answer_nothing_or_refused(payload: bytes, binary: bool) -> None:
    try:
        frame = CODEC.decode(payload, binary)
    except FrameRefused:
        return
    if isinstance(frame, ClientFrame) and frame.HasField("message"):
        assert frame.message.parts[-1].custom.json == payload.decode()
        assert ClientFrame.FromString(frame.SerializeToString()) == frame


@pytest.mark.parametrize("codec", [CODEC, FLAT])
@given(frame=frames(ServerFrame))
@settings(deadline=None)
def test_any_server_frame_is_nothing_or_an_object_with_a_type(codec: Maim, frame: ServerFrame) -> None:
    payload = codec.encode(frame)
    if payload:
        assert isinstance(json.loads(payload)["type"], str)


STAMPED = {"tenant_id", "platform", "agent_id", "message_id", "broadcast_timestamp"}
BODIES = st.dictionaries(st.sampled_from([*STAMPED, "type"]) | st.text(max_size=4), ANY_JSON, max_size=6)


@given(body=BODIES)
@settings(deadline=None)
def test_a_body_is_returned_verbatim_except_for_stamped_fields(body: dict[str, Any]) -> None:
    try:
        text = msgspec.json.encode(body).decode()
    except UnicodeEncodeError:
        return
    part = Part(custom=CustomPart(name="maim.broadcast", json=text))
    frame = ServerFrame()
    frame.message.parts.append(part)
    pushed = msgspec.json.decode(CODEC.encode(frame), type=dict[str, msgspec.Raw])
    given_fields = msgspec.json.decode(text, type=dict[str, msgspec.Raw])
    assert pushed.keys() == body.keys() | STAMPED | {"type"}
    for name in body.keys() - STAMPED:
        assert bytes(pushed[name]) == bytes(given_fields[name])
