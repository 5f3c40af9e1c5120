"""Half of an emoji in JSON becomes U+FFFD in every dialect."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from trunkline.v1.frame_pb2 import ClientFrame, MessageFrame
from trunkline_edge.dialects.codec import Codec, FrameRefused, SwitchCodec
from trunkline_edge.dialects.json_text import MAX_REPLACED, decode_json, replace_lone_surrogates
from trunkline_edge.dialects.langbot.chat_codec import LangBotCodec
from trunkline_edge.dialects.maim.api_codec import MaimApi
from trunkline_edge.dialects.maim.router_codec import MaimRouter
from trunkline_edge.dialects.maim.tenant import Maim
from trunkline_edge.dialects.native.handshake import CODECS
from trunkline_edge.dialects.socket_io import SocketIo

NOW = datetime(2026, 1, 2, tzinfo=UTC)
JSON, PROTO = CODECS["trunkline.v1.json"], CODECS["trunkline.v1.proto"]

INFO = '"message_info":{"platform":"qq","message_id":"m1","time":1}'
DIM = '"message_dim":{"api_key":"k","platform":"qq"}'

#: A message in each dialect, with a text at %s.
MESSAGES: list[tuple[Codec, str]] = [
    (JSON, '{"type":"message","id":"m1","parts":[{"type":"text","text":"%s"}]}'),
    (LangBotCodec("person", lambda: NOW), '{"type":"message","message":[{"type":"Plain","text":"%s"}]}'),
    (
        Maim("demo", "echo", "qq", True, lambda: NOW),
        '{"message_id":"m1","message_segment":{"type":"text","data":"%s"}}',
    ),
    (
        MaimApi(lambda: NOW, "acme", "helper", "qq", "single_1"),
        '{"msg_id":"m1","type":"sys_std","payload":{' + INFO + "," + DIM + ","
        '"message_segment":{"type":"text","data":"%s"}}}',
    ),
    (
        MaimRouter(lambda: NOW, "acme", "helper", "qq"),
        "{" + INFO + ',"message_segment":{"type":"text","data":"%s"}}',
    ),
    (
        SocketIo(MaimRouter(lambda: NOW, "acme", "helper", "qq")),
        '42["message",{' + INFO + ',"message_segment":{"type":"text","data":"%s"}}]',
    ),
]

TEXTS = [
    (r"a\ud83d", "a\ufffd"),
    (r"\uDE00b", "\ufffdb"),
    (r"\ud83d\ude00", "\U0001f600"),
    (r"\ud83d\uD83D\uDe00\ude00", "\ufffd\U0001f600\ufffd"),
    (r"\\ud83d", r"\ud83d"),
    (r"\\\ud83d\n", "\\\ufffd\n"),
    (r"\ud83d \"x\" \ude00", '\ufffd "x" \ufffd'),
]


@pytest.mark.parametrize(("written", "text"), TEXTS)
@pytest.mark.parametrize(("codec", "template"), MESSAGES)
def test_half_an_emoji_is_replaced_in_every_dialect(
    codec: Codec, template: str, written: str, text: str
) -> None:
    decoded = codec.decode((template % written).encode())
    frame = decoded.decoded if isinstance(decoded, SwitchCodec) else decoded
    assert isinstance(frame, ClientFrame)
    assert frame.message.parts[0].text.text == text
    for part in frame.message.parts:
        # A whole object that goes along is JSON for every reader.
        whole = msgspec.json.decode(part.custom.json or b"{}")
        assert not whole or msgspec.json.encode(text) in msgspec.json.encode(whole)


@pytest.mark.parametrize(
    "payload",
    [
        rb'{"type":"message","id":"m\ud83d","parts":[]}',
        rb'{"type":"signal","name":"\ud83d","data":{"\ude00":["\ud83d"]}}',
        rb'{"type":"ping","id":"\ud83d"}',
        rb'{"type":"message","id":"m","parts":[],"attributes":{"\ud83d":"\ud83d"}}',
    ],
)
def test_half_an_emoji_is_replaced_in_any_string_of_a_native_frame(payload: bytes) -> None:
    whole = re.sub(rb"\\ud83d|\\ude00", rb"\\ufffd", payload)
    assert JSON.decode(payload) == JSON.decode(whole)


def test_other_errors_of_such_a_frame_name_its_id() -> None:
    with pytest.raises(FrameRefused) as refused:
        JSON.decode(rb'{"type":"message","id":"m1\ud83d","parts":7}')
    assert refused.value.frame_id == "m1\ufffd"


def test_more_halves_than_text_can_need_are_refused_by_the_frames_id() -> None:
    halves = rb"\ud83d" * (MAX_REPLACED + 1)
    with pytest.raises(FrameRefused) as refused:
        JSON.decode(rb'{"type":"message","id":"m1","parts":[{"type":"text","text":"%b"}]}' % halves)
    assert (refused.value.entry.code, refused.value.frame_id) == ("MALFORMED_FRAME", "m1")


def test_invalid_text_in_protobuf_is_refused_by_the_frames_id() -> None:
    frame = ClientFrame(message=MessageFrame(id="m1", reply_to="xxx")).SerializeToString()
    with pytest.raises(FrameRefused) as refused:
        PROTO.decode(frame.replace(b"xxx", b"\xed\xa0\xbd"))
    assert (refused.value.entry.code, refused.value.frame_id) == ("MALFORMED_FRAME", "m1")


STRINGS = st.lists(
    st.sampled_from([r"\ud83d", r"\uDE00", r"\\", r"\n", r"\u0041", "a", "ud83d", r"\"", "\U0001f600"]),
    max_size=8,
).map("".join)


@given(STRINGS)
def test_any_string_decodes_as_python_reads_it(written: str) -> None:
    text = f'"{written}"'.encode()
    expected: Any = re.sub("[\ud800-\udfff]", "\ufffd", json.loads(text))
    assert decode_json(msgspec.json.decode, text) == expected
    repaired = replace_lone_surrogates(text)
    assert replace_lone_surrogates(repaired) is repaired
