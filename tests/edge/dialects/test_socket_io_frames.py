"""Socket.IO around another codec: events, acknowledgements, namespaces and errors."""

from __future__ import annotations

import json
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

import pytest
import socketio.packet
from hypothesis import given, settings
from hypothesis import strategies as st
from trunkline.v1 import catalogue
from trunkline.v1.frame_pb2 import ClientFrame, ServerFrame
from trunkline.v1.message_pb2 import ROLE_AGENT
from trunkline_edge.core.encoding import count_frames, encode_frame
from trunkline_edge.dialects.codec import Codec, DirectReply, FrameRefused, SwitchCodec
from trunkline_edge.dialects.maim.api_codec import MaimApi
from trunkline_edge.dialects.maim.router_codec import MaimRouter
from trunkline_edge.dialects.socket_io import SEPARATOR, SocketIo

from tests.edge.dialects.test_codec_properties import ANY_JSON, frames

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
API = SocketIo(MaimApi(lambda: NOW, "acme", "helper", "qq", "single_1"))
ROUTER = SocketIo(MaimRouter(lambda: NOW, "acme", "helper", "qq"))

SAID = {"ver": 1, "msg_id": "m1", "type": "sys_std", "payload": "hello"}


def event(*arguments: Any, number: str = "", namespace: str = "") -> bytes:
    return f"42{namespace}{number}{json.dumps(arguments)}".encode()


def packets(data: bytes) -> list[socketio.packet.Packet]:
    """The packets in what a codec encoded, as the library reads them."""
    assert data.endswith(SEPARATOR) or not data
    texts = data.decode().split("\x1e")[:-1]
    assert all(text.startswith("4") for text in texts)
    return [socketio.packet.Packet(encoded_packet=text[1:]) for text in texts]


def test_an_event_is_a_message_of_the_inner_codec() -> None:
    decoded = API.decode(event("message", SAID))
    assert isinstance(decoded, ClientFrame)
    assert (decoded.message.id, decoded.message.parts[0].text.text) == ("m1", "hello")
    assert API.decode(event("message", json.dumps(SAID))) == decoded
    assert API.decode(event("message", SAID, namespace="/,")) == decoded


def test_the_codec_behaves_like_the_inner_one() -> None:
    assert (API.name, ROUTER.name) == ("maim.api", "maim.router")
    assert (API.assigns_ids, ROUTER.assigns_ids) == (False, True)
    assert SocketIo(MaimApi(lambda: NOW, "acme", "helper", "qq", "another")) == API
    assert hash(API) != hash(ROUTER)


def test_a_message_is_acknowledged_by_number_when_it_is_stored() -> None:
    switch = API.decode(event("message", SAID, number="7"))
    assert isinstance(switch, SwitchCodec)
    assert isinstance(switch.decoded, ClientFrame)
    again = switch.codec.decode(event("message", SAID | {"msg_id": "m2"}, number="8"))
    assert isinstance(again, SwitchCodec)
    message, ack = packets(again.codec.encode(ServerFrame(ack={"id": "m1"})))
    assert message.data[1]["meta"]["acked_msg_id"] == "m1"
    assert (ack.packet_type, ack.id, ack.data) == (socketio.packet.ACK, 7, [])
    assert len(packets(again.codec.encode(ServerFrame(ack={"id": "m3"})))) == 1


def test_a_message_without_an_id_is_acknowledged_by_number_too() -> None:
    switch = ROUTER.decode(event("message", {"message_segment": {"type": "text", "data": "hi"}}, number="1"))
    assert isinstance(switch, SwitchCodec)
    assert isinstance(switch.decoded, ClientFrame)
    (ack,) = packets(switch.codec.encode(ServerFrame(ack={"id": switch.decoded.message.id})))
    assert (ack.packet_type, ack.id) == (socketio.packet.ACK, 1)
    other = ROUTER.decode(event("message", {}, number="1"))
    assert isinstance(other, SwitchCodec)
    assert isinstance(other.decoded, ClientFrame)
    assert other.decoded.message.id != switch.decoded.message.id


@pytest.mark.parametrize(
    ("said", "kinds"),
    [({"msg_id": "x", "type": "sys_other"}, [2, 3]), ({"type": "sys_ack"}, [3]), ("no JSON", [3])],
)
def test_what_becomes_no_message_is_acknowledged_at_once(said: object, kinds: list[int]) -> None:
    reply = API.decode(event("message", said, number="7"))
    assert isinstance(reply, DirectReply)
    assert [packet.packet_type for packet in packets(reply.payload)] == kinds


def test_only_the_latest_numbers_are_kept() -> None:
    codec: Codec = API
    for number in range(100):
        switch = codec.decode(event("message", SAID | {"msg_id": f"m{number}"}, number=str(number)))
        assert isinstance(switch, SwitchCodec)
        codec = switch.codec
    assert isinstance(codec, SocketIo)
    assert [number for _, number in codec.acks] == list(range(36, 100))


def test_a_long_msg_id_stays_with_the_inner_codec() -> None:
    switch = API.decode(event("message", SAID | {"msg_id": "x" * 500}, number="7"))
    assert isinstance(switch, SwitchCodec)
    assert isinstance(switch.decoded, ClientFrame)
    message, ack = packets(switch.codec.encode(ServerFrame(ack={"id": switch.decoded.message.id})))
    assert message.data[1]["meta"]["acked_msg_id"] == "x" * 500
    assert ack.id == 7


@pytest.mark.parametrize(
    ("payload", "problem"),
    [
        (b"4", "no Socket.IO packet"),
        (b"49", "no Socket.IO packet"),
        (b'44{"message":"x"}', "no Socket.IO packet"),
        (b"42", "cannot be read"),
        (b"42{}", "cannot be read"),
        (b"4212345678901234567890[]", "cannot be read"),
        (b"42[]", "name `message` and one value"),
        (b'42["message"]', "name `message` and one value"),
        (b'42["message",1,2]', "name `message` and one value"),
        (b'42["message",', "name `message` and one value"),
        (b'42[1,"message"]', "name `message` and one value"),
        (b'42["chat",{}]', "only event"),
        (b'42/room,["message",{}]', "no namespace"),
        (b'451-["message",{"_placeholder":true,"num":0}]', "binary"),
        (b"461-7[{}]", "binary"),
        (b"40/" + b"x" * 200, "namespace is invalid"),
        (b"40/a\x1e42", "namespace is invalid"),
    ],
)
@pytest.mark.parametrize("codec", [API, ROUTER], ids=["api", "router"])
def test_anything_else_is_refused_in_words_that_the_client_gets(
    codec: Codec, payload: bytes, problem: str
) -> None:
    with pytest.raises(FrameRefused, match=problem) as refused:
        codec.decode(payload)
    assert refused.value.entry is catalogue.MALFORMED_FRAME
    frame = ServerFrame(error={"code": refused.value.entry.code, "message": str(refused.value)})
    (error,) = packets(codec.encode(frame))
    assert problem in json.dumps(error.data)


def test_connects_disconnects_acks_and_attachments_need_nothing() -> None:
    for payload in (b"40", b"40/", b"40{}", b'40{"token":"x"}', b"40/,{}", b"43[]", b"437[1]", b"41/room,"):
        assert API.decode(payload) is None
    assert API.decode(b"\x00\xff", binary=True) is None
    left = API.decode(b"41")
    assert isinstance(left, ClientFrame)
    assert left.WhichOneof("frame") == "disconnect"
    refused = API.decode(b"40/room,{}")
    assert isinstance(refused, DirectReply)
    (packet,) = packets(refused.payload)
    assert (packet.packet_type, packet.namespace) == (socketio.packet.CONNECT_ERROR, "/room")


def test_the_first_packet_confirms_the_namespace() -> None:
    (packet,) = packets(API.encode(ServerFrame(connected={"connection_id": "c1"})))
    assert (packet.packet_type, packet.data) == (socketio.packet.CONNECT, {"sid": "c1"})


def test_only_a_superseded_client_is_told_to_stay_away() -> None:
    def kinds(codec: Codec, reason: str) -> list[int]:
        code = catalogue.ENTRIES[reason].close_code
        frame = ServerFrame(closing={"code": code, "reason": reason, "message": "why"})
        return [packet.packet_type for packet in packets(codec.encode(frame))]

    assert kinds(API, "RESTARTING") == []
    assert kinds(ROUTER, "RESTARTING") == []
    assert kinds(ROUTER, "FRAME_TOO_LARGE") == [socketio.packet.EVENT]
    assert kinds(ROUTER, "SUPERSEDED") == [socketio.packet.EVENT, socketio.packet.DISCONNECT]


def test_errors_of_frames_that_the_client_did_not_send_are_not_sent() -> None:
    assert API.encode(ServerFrame(error={"code": "NOT_FOUND", "message": "x"})) == b""
    (limited,) = packets(API.encode(ServerFrame(error={"code": "RATE_LIMITED", "message": "slow down"})))
    assert limited.data == ["error", {"code": "RATE_LIMITED", "message": "slow down"}]


def test_a_separator_in_a_verbatim_object_does_not_end_the_packet() -> None:
    raw = '{"message_info":{},"message_segment":{"type":"text","data":"a\x1eb"}}'
    part = {"custom": {"name": "maim.message", "json": raw}}
    frame = ServerFrame(message={"author": {"role": ROLE_AGENT}, "state": 2, "parts": [part]})  # type: ignore[arg-type]
    data = encode_frame(ROUTER, frame)
    (packet,) = packets(data)
    assert packet.data[0] == "message"
    assert count_frames(ROUTER, data) == 1


@given(payload=st.binary(max_size=64) | st.builds(lambda rest: b"42" + rest, st.binary(max_size=64)))
@settings(deadline=None)
def test_arbitrary_bytes_are_decoded_or_refused(payload: bytes) -> None:
    for codec in (API, ROUTER):
        try:
            decoded = codec.decode(payload)
        except FrameRefused:
            continue
        if isinstance(decoded, DirectReply):
            packets(decoded.payload)


@given(value=ANY_JSON, number=st.integers(0, 10**14) | st.none())
@settings(deadline=None)
def test_any_value_may_be_the_message(value: Any, number: int | None) -> None:
    for codec in (API, ROUTER):
        with suppress(FrameRefused):
            codec.decode(event("message", value, number="" if number is None else str(number)))


@given(frame=frames(ServerFrame))
@settings(deadline=None)
def test_any_frame_is_whole_packets(frame: ServerFrame) -> None:
    for codec in (API, ROUTER):
        packets(codec.encode(frame))
