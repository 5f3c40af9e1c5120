"""LangBot's codec: golden frames, and properties for arbitrary input."""

from __future__ import annotations

import base64
import json
import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import text_format
from hypothesis import given, settings
from hypothesis import strategies as st
from trunkline.v1 import catalogue
from trunkline.v1.frame_pb2 import ClientFrame, ClosingFrame, MessageFrame, ServerFrame
from trunkline.v1.message_pb2 import Part
from trunkline_edge.dialects.codec import FrameRefused, StreamingMode, SwitchCodec
from trunkline_edge.dialects.langbot.chain import chain_of, content_of, parts_of
from trunkline_edge.dialects.langbot.chat_codec import LangBotCodec
from trunkline_edge.dialects.langbot.json_values import MAX_DEPTH
from trunkline_router.core.validation.validator import check

from tests.edge.dialects.filled_messages import filled
from tests.edge.dialects.test_codec_properties import ANY_JSON, frames

NOW = datetime(2025, 1, 31, 12, tzinfo=UTC)


def noon() -> datetime:
    return NOW


CODEC = LangBotCodec("person", noon)


def golden(side: str) -> list[tuple[str, str]]:
    """JSON and protobuf text format of the frames from one side."""
    blocks = Path(__file__).with_name("langbot_frames.txt").read_text("utf-8").strip().split("\n\n")
    found = [block.removeprefix(f"{side} ").partition("\n") for block in blocks if block.startswith(side)]
    return [(as_json, text) for as_json, _, text in found]


CLIENT, SERVER = golden("client"), golden("server")


@pytest.mark.parametrize(("as_json", "text"), CLIENT, ids=[row[0][:60] for row in CLIENT])
@pytest.mark.parametrize("binary", [False, True])
def test_a_client_frame_is_decoded(as_json: str, text: str, binary: bool) -> None:
    assert CODEC.decode(as_json.encode(), binary) == text_format.Parse(text, ClientFrame())


@pytest.mark.parametrize(("as_json", "text"), SERVER, ids=[row[1][:40] for row in SERVER])
def test_a_server_frame_is_encoded_to_the_letter(as_json: str, text: str) -> None:
    assert CODEC.encode(text_format.Parse(text, ServerFrame())).decode() == as_json


@pytest.mark.parametrize("as_json", [row[0] for row in CLIENT if '"message":[' in row[0]])
def test_a_clients_message_is_returned_verbatim(as_json: str) -> None:
    frame = CODEC.decode(as_json.encode())
    assert isinstance(frame, ClientFrame)
    shown = chain_of(frame.message.parts)
    assert json.dumps(shown, sort_keys=True) == json.dumps(json.loads(as_json)["message"], sort_keys=True)


def test_stream_false_switches_to_whole_replies_and_back() -> None:
    ping, whole, grows = (
        CODEC.decode(text) for text in (b'{"type":"ping"}', b'{"stream":false}', b'{"stream":true}')
    )
    assert isinstance(ping, ClientFrame)
    assert isinstance(grows, ClientFrame)
    assert isinstance(whole, SwitchCodec)
    assert (whole.codec.streaming, whole.decoded) == (StreamingMode.COMPLETE, grows)
    assert whole.codec == LangBotCodec("person", noon, StreamingMode.COMPLETE) != CODEC
    assert hash(whole.codec) == hash(LangBotCodec("person", noon, StreamingMode.COMPLETE))
    back = whole.codec.decode(b"{}")
    assert isinstance(back, SwitchCodec)
    assert back.codec == CODEC
    assert isinstance(whole.codec.decode(b'{"stream":false}'), ClientFrame)
    assert isinstance(whole.codec.decode(b'{"type":"ping","stream":true}'), ClientFrame)


@pytest.mark.parametrize("text", ['{"type":"subscribe"}', '{"type":null}', '{"type":[1]}', '{"type":""}'])
def test_unknown_types_say_nothing(text: str) -> None:
    assert CODEC.decode(text.encode()) is None


@pytest.mark.parametrize(
    ("payload", "sentence"),
    [
        (b"", "Invalid JSON format"),
        (b"{", "Invalid JSON format"),
        (b"\xff", "Invalid JSON format"),
        (b'{"a":1e999}', "Invalid JSON format"),
        (b'{"a":' + b"9" * 5000 + b"}", "Invalid JSON format"),
        (b'{"a":' + b"[" * 5000, "Invalid JSON format"),
        (b'{"a":' + b"[" * MAX_DEPTH + b"]" * MAX_DEPTH + b"}", "Invalid JSON format"),
        (b"[]", "The message must be a JSON object"),
        (b'{"message":"text"}', "message must be a list of components"),
        (b'{"message":null}', "message must be a list of components"),
    ],
)
def test_invalid_frames_are_refused(payload: bytes, sentence: str) -> None:
    with pytest.raises(FrameRefused) as caught:
        CODEC.decode(payload)
    assert str(caught.value) == sentence


def test_the_deepest_accepted_component_is_returned() -> None:
    value: Any = "x"
    for _ in range(MAX_DEPTH - 4):
        value = [value]
    chain = [{"type": "Deep", "value": value}]
    said = CODEC.decode(json.dumps({"message": chain}).encode())
    assert isinstance(said, ClientFrame)
    frame = ServerFrame()
    frame.message.parts.extend(said.message.parts)
    assert json.loads(CODEC.encode(frame))["data"]["message_chain"] == chain


@pytest.mark.parametrize("uri", ["data:image/png;base64,", ""])
def test_media_over_the_limit_is_refused(uri: str) -> None:
    data = base64.b64encode(bytes((8 << 20) + 1)).decode()
    with pytest.raises(FrameRefused, match=r"Image\.base64: has 8388609 bytes; at most 8388608"):
        parts_of([{"type": "Image", "base64": uri + data}])


def test_a_long_chain_has_as_many_parts_as_a_message_may_have_and_is_whole() -> None:
    for count in (63, 64, 65, 200):
        chain = [{"type": "Plain", "text": str(number)} for number in range(count)]
        parts = parts_of(chain)
        assert len(parts) == min(count, 64)
        assert chain_of(parts) == chain
        assert content_of(chain_of(parts)) == content_of(chain)


@pytest.mark.parametrize(
    ("entry", "code"),
    [
        (catalogue.DISCONNECTED, 1000),
        (catalogue.FRAME_TOO_LARGE, 1009),
        (catalogue.RESTARTING, 1012),
        (catalogue.ROUTER_UNAVAILABLE, 1013),
        (catalogue.SLOW_CONSUMER, 1013),
        (catalogue.HEARTBEAT_LOST, 1013),
        (catalogue.HANDSHAKE_TIMEOUT, 1000),
        (catalogue.UNAUTHORIZED, 1000),
        (catalogue.INVALID_ADDRESS, 1000),
        (catalogue.CLOSED_BY_BACKEND, 1000),
    ],
)
def test_no_close_code_is_of_trunklines_own(entry: catalogue.Entry, code: int) -> None:
    assert CODEC.close_code(ClosingFrame(code=entry.close_code, reason=entry.code)) == code


def decoded_or_refused(payload: bytes) -> None:
    """Decode a payload; any exception but FrameRefused fails the test."""
    try:
        CODEC.decode(payload)
    except FrameRefused:
        return


@given(payload=st.binary(max_size=64))
@settings(deadline=None)
def test_arbitrary_bytes_are_decoded_or_refused(payload: bytes) -> None:
    decoded_or_refused(payload)


TYPES = st.sampled_from(
    ["Plain", "Image", "Voice", "File", "At", "AtAll", "Quote", "Face", "Source", "X", ""]
)
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=6)
BASE64 = st.binary(max_size=4).map(lambda data: base64.b64encode(data).decode())
URIS = st.tuples(st.sampled_from(["image/png", ""]), BASE64).map(lambda two: f"data:{two[0]};base64,{two[1]}")
#: Without NaN and infinity.
JSON = ANY_JSON.filter(lambda value: "NaN" not in json.dumps(value) and "Infinity" not in json.dumps(value))
VALUES = TEXTS | URIS | BASE64 | st.integers() | JSON
MEDIA_KEYS = ["url", "path", "base64", "image_id", "length", "name", "size", "mime_type", "sha256"]
KEYS = st.sampled_from([*MEDIA_KEYS, "text", "id", "origin", "target", "display", "x"])
COMPONENTS = st.recursive(
    st.dictionaries(KEYS, VALUES, max_size=4).flatmap(
        lambda fields: TYPES.map(lambda kind: fields | {"type": kind})
    ),
    lambda inner: st.fixed_dictionaries({"type": st.just("Quote"), "origin": st.lists(inner, max_size=3)}),
    max_leaves=4,
)
CHAINS = st.lists(COMPONENTS | JSON, max_size=5)


def without_lone_surrogates(value: Any) -> Any:
    paired = json.dumps(json.loads(json.dumps(value)), ensure_ascii=False)
    return json.loads(re.sub("[\ud800-\udfff]", "\ufffd", paired))


def as_json(value: Any) -> str:
    return json.dumps(value, sort_keys=True)


@given(chain=CHAINS)
@settings(deadline=None, max_examples=200)
def test_any_chain_comes_back_as_it_was(chain: list[Any]) -> None:
    payload = json.dumps({"message": chain})
    said = CODEC.decode(payload.encode())
    assert isinstance(said, ClientFrame)
    assert as_json(chain_of(said.message.parts)) == as_json(without_lone_surrogates(chain))
    said.message.id = "given by the core"
    check(said.message)


LONG = {
    "Plain": "text",
    "Quote": "id",
    "Image": "url",
    "Voice": "path",
    "File": "name",
    "At": "display",
    "X" * 300: "x",
}


@pytest.mark.parametrize("length", [129, 257, 1025, 4097, 262_145])
def test_a_component_larger_than_a_part_is_accepted_unchanged(length: int) -> None:
    chain = [
        {"type": kind, "target": "bob", "base64": "", "url": "u"} | {key: "x" * length}
        for kind, key in LONG.items()
    ]
    chain.append({"type": "Image", "base64": f"data:{'x' * length};base64,AAAA"})
    parts = parts_of(chain)
    check(MessageFrame(id="m", parts=parts))
    assert chain_of(parts) == chain


PARTS = st.lists(frames(Part), max_size=4)
OWN = {"custom", "reasoning", "tool_call", "tool_result", None}


@given(parts=PARTS)
@settings(deadline=None)
def test_messages_of_others_keep_all_their_parts(parts: list[Part]) -> None:
    shown = [part for part in parts if part.WhichOneof("content") not in OWN]
    chain = json.loads(json.dumps(chain_of(shown)))
    again = parts_of(chain)
    assert chain_of(again) == chain


@given(frame=frames(ServerFrame))
@settings(deadline=None)
def test_any_server_frame_is_encoded(frame: ServerFrame) -> None:
    if payload := CODEC.encode(frame):
        assert json.loads(payload)["type"]


def test_filled_server_frames_are_encoded() -> None:
    for frame in filled(ServerFrame.DESCRIPTOR):
        assert isinstance(frame, ServerFrame)
        if payload := CODEC.encode(frame):
            assert json.loads(payload)["type"]
