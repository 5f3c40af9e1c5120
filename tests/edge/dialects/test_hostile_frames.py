"""Frames with more values than a frame may have are refused at the price of reading them."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest
from trunkline.v1.frame_pb2 import ClientFrame, ServerFrame
from trunkline_edge.dialects.codec import FREE_VALUES, Codec, FrameRefused
from trunkline_edge.dialects.json_text import MAX_FRAME_VALUES, count_above, count_values
from trunkline_edge.dialects.langbot.chat_codec import LangBotCodec
from trunkline_edge.dialects.langbot.json_values import value_of
from trunkline_edge.dialects.maim.api_codec import MaimApi
from trunkline_edge.dialects.maim.router_codec import MaimRouter
from trunkline_edge.dialects.maim.tenant import Maim
from trunkline_edge.dialects.native.handshake import CODECS
from trunkline_edge.dialects.socket_io import SocketIo
from trunkline_runtime.free_form import MAX_VALUES

from tests.edge.dialects.hostile_frames import (
    MAX_CPU_S,
    NATIVE_JSON,
    NATIVE_PROTO,
    SIZE,
    VALUES,
    in_dialect,
)

NOW = datetime(2026, 1, 2, tzinfo=UTC)
JSON, PROTO = CODECS["trunkline.v1.json"], CODECS["trunkline.v1.proto"]
LANGBOT = LangBotCodec("person", lambda: NOW)
MAIM = Maim("demo", "echo", "qq", True, lambda: NOW)
MAIM_API = MaimApi(lambda: NOW, "acme", "helper", "qq", "single_1")
MAIM_ROUTER = MaimRouter(lambda: NOW, "acme", "helper", "qq")
SOCKET_IO = SocketIo(MAIM_API)


def within_cpu_time(call: Callable[[], Any]) -> Any:
    started = time.thread_time()
    try:
        return call()
    finally:
        assert time.thread_time() - started < MAX_CPU_S


def refusal(codec: Codec, payload: bytes) -> FrameRefused:
    def decode() -> FrameRefused:
        with pytest.raises(FrameRefused) as refused:
            codec.decode(payload)
        return refused.value

    found: FrameRefused = within_cpu_time(decode)
    return found


@pytest.mark.parametrize("name", NATIVE_JSON)
def test_hostile_json_is_refused_by_its_id_before_anything_is_built(name: str) -> None:
    payload, frame_id = NATIVE_JSON[name]
    refused = refusal(JSON, payload)
    assert refused.entry.code == "INVALID_ARGUMENT"
    assert f"at most {MAX_FRAME_VALUES} are allowed" in str(refused)
    assert (refused.frame_id, refused.values > MAX_FRAME_VALUES) == (frame_id, True)


@pytest.mark.parametrize("name", NATIVE_PROTO)
def test_hostile_protobuf_is_refused_by_its_id(name: str) -> None:
    payload, frame_id = NATIVE_PROTO[name]
    refused = refusal(PROTO, payload)
    assert refused.entry.code in ("INVALID_ARGUMENT", "MALFORMED_FRAME")
    assert (refused.frame_id, refused.values > MAX_VALUES) == (frame_id, True)


@pytest.mark.parametrize(
    ("codec", "template", "frame_id", "code"),
    [
        (LANGBOT, b'{"type":"message","message":[%b]}', "", "INVALID_ARGUMENT"),
        (MAIM, b'{"message_id":"m1","message_segment":%b}', "m1", "MALFORMED_FRAME"),
        (MAIM_API, b'{"msg_id":"m1","type":"sys_std","payload":%b}', "", "INVALID_ARGUMENT"),
        (MAIM_ROUTER, b'{"message_info":{"message_id":"m1"},"message_segment":%b}', "", "MALFORMED_FRAME"),
        (SOCKET_IO, b'42["message",{"msg_id":"m1","type":"sys_std","payload":%b}]', "", "INVALID_ARGUMENT"),
        (SOCKET_IO, b'421["message",%b]', "", "INVALID_ARGUMENT"),
        (SOCKET_IO, b'42[%b,"message"]', "", "INVALID_ARGUMENT"),
        (MAIM_ROUTER, b'{"is_custom_message":true,"content":%b}', "", "MALFORMED_FRAME"),
    ],
)
@pytest.mark.parametrize("name", VALUES)
def test_hostile_json_is_refused_in_every_dialect(
    codec: Codec, template: bytes, frame_id: str, code: str, name: str
) -> None:
    refused = refusal(codec, in_dialect(template)[name])
    assert refused.entry.code == code
    assert f"at most {MAX_FRAME_VALUES} are allowed" in str(refused)
    assert (refused.frame_id, refused.values > MAX_FRAME_VALUES) == (frame_id, True)


@pytest.mark.parametrize(
    ("message_id", "reply"),
    [
        ("", {"type": "error", "error_code": "internal_error"}),
        ('"message_id":"m1",', {"type": "message_result", "message_id": "m1", "success": False}),
    ],
)
def test_a_maim_client_learns_of_the_refusal_with_or_without_an_id(
    message_id: str, reply: dict[str, Any]
) -> None:
    refused = refusal(MAIM, b'{%b"a":%b}' % (message_id.encode(), VALUES["numbers"]))
    frame = ServerFrame(error={"id": refused.frame_id, "code": refused.entry.code, "message": str(refused)})
    sent = json.loads(MAIM.encode(frame))
    assert sent | reply == sent


@pytest.mark.parametrize("name", VALUES)
def test_a_stored_value_of_too_many_values_is_shown_as_text(name: str) -> None:
    text = VALUES[name].decode()
    assert within_cpu_time(lambda: value_of(text)) == text


@pytest.mark.parametrize("text", [b"a, [b] {c}, " * (SIZE // 12), b'\\", [\\\\' * (SIZE // 8)])
def test_text_may_hold_any_number_of_commas_and_brackets(text: bytes) -> None:
    frame = JSON.decode(b'{"type":"message","id":"m1","parts":[{"type":"text","text":"%b"}]}' % text)
    assert isinstance(frame, ClientFrame)
    assert frame.message.parts[0].text.text == json.loads(b'"%b"' % text)


def data_of(values: int) -> bytes:
    return b'{"a":[%b]}' % b",".join([b"1"] * (values - 1))


def test_a_free_form_value_may_have_so_many_values_in_either_encoding() -> None:
    message = b'{"type":"message","id":"m1","parts":[{"type":"custom","name":"n","data":%b}]}'
    frame = JSON.decode(message % data_of(MAX_VALUES))
    assert isinstance(frame, ClientFrame)
    assert PROTO.decode(frame.SerializeToString()) == frame
    frame.message.parts[0].custom.data["b"] = 1
    for codec, payload in (
        (JSON, message % data_of(MAX_VALUES + 1)),
        (PROTO, frame.SerializeToString()),
    ):
        refused = refusal(codec, payload)
        assert f"a free-form value has more than {MAX_VALUES} values" in str(refused)
        assert (refused.entry.code, refused.frame_id) == ("MALFORMED_FRAME", "m1")


def test_values_are_counted_for_the_rate_limit_alike_in_either_encoding() -> None:
    payload = b'{"type":"signal","name":"n","data":%b}' % data_of(500)
    frame = JSON.decode(payload)
    assert isinstance(frame, ClientFrame)
    assert PROTO.count_values(frame.SerializeToString(), frame) == 500
    # The frame, its type, name and data besides.
    assert JSON.count_values(payload, frame) == 504
    few = b'{"type":"signal","name":"n","data":%b}' % data_of(FREE_VALUES - 4)
    assert JSON.count_values(few, None) == PROTO.count_values(few, JSON.decode(few)) == 0


def test_newlines_in_text_are_not_charged_in_protobuf() -> None:
    frame = ClientFrame(message={"id": "m1", "parts": [{"text": {"text": "line\n" * 1000}}]})
    assert PROTO.count_values(frame.SerializeToString(), frame) == 0


@pytest.mark.parametrize(
    ("value", "count"),
    [(1, 1), ("a,[{\\\"'", 1), ([], 1), ({}, 1), ([1, []], 3), ({"a,": {"b": [True, None]}}, 5), ([[[]]], 3)],
)
@pytest.mark.parametrize("indent", [None, 2])
def test_values_are_counted_as_they_are(value: Any, count: int, indent: int | None) -> None:
    text = json.dumps(value, indent=indent).encode()
    assert count_values(text) == count
    assert (count_above(text, count), count_above(text, count - 1)) == (0, count)
