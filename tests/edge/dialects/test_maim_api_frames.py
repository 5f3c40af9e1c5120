"""The codec of maim_message's API server: golden frames, msg_ids and limits."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import text_format
from trunkline.v1 import catalogue
from trunkline.v1.frame_pb2 import ClientFrame, ServerFrame
from trunkline.v1.message_pb2 import ROLE_AGENT
from trunkline_edge.dialects.codec import DirectReply, FrameRefused, SwitchCodec
from trunkline_edge.dialects.maim.api_codec import MAX_FRAME_BYTES, MaimApi
from trunkline_edge.dialects.maim.api_ids import MAX_CHARACTERS

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
CODEC = MaimApi(lambda: NOW, "acme", "helper", "qq", "single_1", "acme:helper:s3cret")
GOLDEN = Path(__file__).with_name("golden_maim_api.txt").read_text("utf-8")


def golden(side: str) -> list[tuple[str, str]]:
    """Wire form and meaning of the frames from one side."""
    blocks = GOLDEN.strip().split("\n\n")
    rows = [block.removeprefix(f"{side} ").partition("\n") for block in blocks if block.startswith(side)]
    return [(wire, text) for wire, _, text in rows]


CLIENT, SERVER = golden("client"), golden("server")


def shown(decoded: object) -> str:
    """A decoded client frame in the notation of golden_maim_api.txt."""
    if isinstance(decoded, DirectReply):
        return f"answer {decoded.payload.decode()}"
    return "nothing" if decoded is None else str(decoded).strip()


@pytest.mark.parametrize(("wire", "expected"), CLIENT, ids=[row[0][:60] for row in CLIENT])
def test_a_client_frame_is_decoded_as_ever(wire: str, expected: str) -> None:
    decoded = CODEC.decode(wire.encode())
    if isinstance(decoded, ClientFrame):
        assert decoded == text_format.Parse(expected, ClientFrame())
    else:
        assert shown(decoded) == expected


@pytest.mark.parametrize(("wire", "text"), SERVER, ids=[row[0][:60] for row in SERVER])
def test_a_server_frame_is_encoded_to_the_letter(wire: str, text: str) -> None:
    assert (CODEC.encode(text_format.Parse(text, ServerFrame())).decode() or "nothing") == wire


SAID: dict[str, Any] = {
    "ver": 1,
    "msg_id": "msg_0123456789ab_1767323045",
    "type": "sys_std",
    "meta": {"sender_user": "acme:helper:s3cret", "platform": "qq", "timestamp": 1767323045.5},
    "payload": {
        "message_info": {"platform": "qq", "message_id": "m1", "time": 1767323045.5},
        "message_segment": {"type": "text", "data": "hello"},
        "message_dim": {"api_key": "acme:helper:s3cret", "platform": "qq"},
    },
}


def decoded(**fields: Any) -> Any:
    return CODEC.decode(json.dumps(SAID | fields).encode())


def acked(payload: bytes) -> Any:
    """The msg_id in an acknowledgement."""
    frame = json.loads(payload)
    assert frame["type"] == "sys_ack"
    return frame["meta"]["acked_msg_id"]


def ack_of(codec: MaimApi, said: ClientFrame) -> Any:
    frame = ServerFrame()
    frame.ack.id = said.message.id
    return acked(codec.encode(frame))


def test_a_token_in_the_key_is_not_passed_on() -> None:
    (_, custom) = decoded().message.parts
    assert "s3cret" not in custom.custom.json
    assert json.loads(custom.custom.json)["meta"]["sender_user"] == "acme:helper"
    assert json.loads(custom.custom.json)["payload"]["message_dim"]["api_key"] == "acme:helper"


@pytest.mark.parametrize("content", ["hello", "", 0, 17, 2.5, True, [1, "x"], {"a": {"b": None}}])
def test_a_payload_without_a_message_is_text_as_python_writes_it(content: Any) -> None:
    assert decoded(payload=content).message.parts[0].text.text == str(content)


INFO = SAID["payload"]["message_info"]


@pytest.mark.parametrize(
    "payload",
    [
        None,
        {"message_info": {}, "message_segment": {"type": "text", "data": "x"}, "message_dim": {}},
        SAID["payload"] | {"message_info": INFO | {"time": None}},
        SAID["payload"] | {"message_info": "qq"},
        SAID["payload"] | {"message_segment": "hello"},
        SAID["payload"] | {"message_dim": {"api_key": "x"}},
        {name: value for name, value in SAID["payload"].items() if name != "message_dim"},
    ],
)
def test_a_malformed_payload_is_acknowledged_and_nothing_else(payload: Any) -> None:
    answer = decoded(payload=payload)
    assert isinstance(answer, DirectReply)
    assert acked(answer.payload) == SAID["msg_id"]


@pytest.mark.parametrize("msg_id", ["", 0, None, False])
def test_messages_without_a_msg_id_are_all_sent_and_never_acknowledged(msg_id: Any) -> None:
    first = decoded(msg_id=msg_id)
    frame = ServerFrame()
    frame.ack.id = first.message.id
    assert CODEC.encode(frame) == b""
    later = replace(CODEC, clock=lambda: NOW.replace(microsecond=1))
    again = later.decode(json.dumps(SAID | {"msg_id": msg_id}).encode())
    assert isinstance(again, ClientFrame)
    assert again.message.id != first.message.id


ODD_IDS = [
    "=",
    "=1",
    17,
    -1.5,
    True,
    "tab\there",
    "\x00",
    "ü\u200b",
    " ",
    "x" * 128,
    "💥" * 128,
    "x" * 129,
    "\n" * 1024,
]


@pytest.mark.parametrize("msg_id", ODD_IDS, ids=[repr(one)[:12] for one in ODD_IDS])
def test_any_msg_id_is_named_as_it_was_and_taken_under_an_id_of_the_contract(msg_id: Any) -> None:
    said, codec = decoded(msg_id=msg_id), CODEC
    if isinstance(said, SwitchCodec):
        assert isinstance(said.codec, MaimApi)
        said, codec = said.decoded, said.codec
        assert codec.decode(json.dumps(SAID | {"msg_id": msg_id}).encode()) == said
    assert 0 < len(said.message.id) <= 128
    assert said.message.id.isprintable()
    named = ack_of(codec, said)
    assert (named, type(named)) == (msg_id, type(msg_id))


def test_parts_that_do_not_fit_beside_a_large_envelope_are_dropped() -> None:
    images = [{"type": "image", "data": "A" * (300 << 10)}] * 16
    said = [{"type": "text", "data": "\U0001f4a5" * 262_144}, *images, {"type": "x", "data": "A" * (5 << 20)}]
    info = SAID["payload"] | {"message_segment": {"type": "seglist", "data": said}}
    payload = json.dumps(SAID | {"payload": info}, ensure_ascii=False).encode()
    assert len(payload) < 11 << 20
    frame = CODEC.decode(payload)
    assert isinstance(frame, ClientFrame)
    assert frame.message.ByteSize() <= 12 << 20
    parts = [part.WhichOneof("content") for part in frame.message.parts]
    assert parts[0] == "text"
    assert "image" in parts
    assert len(parts) < 18
    assert json.loads(frame.message.parts[-1].custom.json)["msg_id"] == SAID["msg_id"]


def test_the_number_of_remembered_long_msg_ids_is_bounded() -> None:
    codec = CODEC
    for number in range(100):
        said = codec.decode(json.dumps(SAID | {"msg_id": f"{number}".zfill(200)}).encode())
        assert isinstance(said, SwitchCodec)
        assert isinstance(said.codec, MaimApi)
        codec = said.codec
    assert len(codec.long_ids) == 64
    assert isinstance(said.decoded, ClientFrame)
    assert ack_of(codec, said.decoded) == "99".zfill(200)


def test_a_msg_id_that_is_too_long_is_refused_and_so_not_acknowledged() -> None:
    with pytest.raises(FrameRefused) as refused:
        decoded(msg_id="x" * (MAX_CHARACTERS + 1))
    assert refused.value.entry is catalogue.INVALID_ARGUMENT
    frame = ServerFrame()
    frame.error.code = refused.value.entry.code
    assert CODEC.encode(frame) == b""


def test_a_binary_message_ends_the_connection() -> None:
    frame = CODEC.decode(b"{}", binary=True)
    assert isinstance(frame, ClientFrame)
    assert frame.HasField("disconnect")


def test_a_repeated_msg_id_is_acknowledged_and_other_refusals_are_not() -> None:
    frame = ServerFrame()
    frame.error.id, frame.error.code = "m1", "IDEMPOTENCY_MISMATCH"
    assert acked(CODEC.encode(frame)) == "m1"
    frame.error.code = "LOG_UNAVAILABLE"
    assert CODEC.encode(frame) == b""


def pushed(**fields: Any) -> ServerFrame:
    frame = ServerFrame()
    frame.message.id = "01A"
    frame.message.author.role = ROLE_AGENT
    for name, value in fields.items():
        getattr(frame.message, name).CopyFrom(value)
    return frame


@pytest.mark.parametrize("text", ["x" * MAX_FRAME_BYTES, "ü" * (MAX_FRAME_BYTES // 2), '"' * MAX_FRAME_BYTES])
def test_m14_what_is_too_large_for_the_clients_is_left_out_and_named(text: str) -> None:
    frame = pushed()
    frame.message.parts.add().text.text = text
    payload = CODEC.encode(frame)
    assert len(payload) < 1000
    envelope = json.loads(payload)
    assert (envelope["type"], envelope["msg_id"]) == ("sys_std", "01A")
    assert "01A@acme was left out" in envelope["payload"]["message_segment"]["data"]


def test_m14_a_frame_of_a_mebibyte_is_sent_and_one_byte_more_is_not() -> None:
    frame = pushed()
    text = frame.message.parts.add().text
    text.text = "x"
    text.text = "x" * (MAX_FRAME_BYTES - len(CODEC.encode(frame)) + 1)
    assert len(CODEC.encode(frame)) == MAX_FRAME_BYTES
    text.text += "x"
    assert len(CODEC.encode(frame)) < 1000


def test_m14_an_envelope_that_a_backend_made_is_measured_too() -> None:
    frame = pushed()
    custom = frame.message.parts.add().custom
    custom.name, custom.json = "maim.api", json.dumps({"payload": "x" * MAX_FRAME_BYTES})
    assert "left out" in CODEC.encode(frame).decode()


def test_an_edited_message_gets_a_new_msg_id_and_a_repeated_one_the_same() -> None:
    frame = pushed()
    frame.message.parts.add().text.text = "hello"
    assert CODEC.encode(frame) == CODEC.encode(frame)
    frame.message.updated_at.FromMilliseconds(1767323045123)
    assert json.loads(CODEC.encode(frame))["msg_id"] == "01A_1767323045123"


def test_codecs_of_one_place_are_equal_whoever_connected() -> None:
    other = MaimApi(lambda: NOW, "acme", "helper", "qq", "single_2", "")
    assert (other, hash(other)) == (CODEC, hash(CODEC))
    assert MaimApi(lambda: NOW, "acme", "helper", "web") != CODEC
    assert "s3cret" not in repr(CODEC)
