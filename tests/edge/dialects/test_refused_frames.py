"""Invalid frames are refused with a helpful text, and the frame's id if it has one."""

from __future__ import annotations

import json

import pytest
from trunkline.v1.edge_service_pb2 import ConnectionFrame, EdgeEntry, LinkRequest
from trunkline.v1.frame_pb2 import ClientFrame
from trunkline_edge.dialects.codec import Codec, FrameRefused
from trunkline_edge.dialects.native.handshake import CODECS
from trunkline_runtime.free_form import MAX_DEPTH

JSON, PROTO = CODECS["trunkline.v1.json"], CODECS["trunkline.v1.proto"]

# Payload, and text of the error.
MALFORMED = [
    (b"", "truncated"),
    (b"hello", "JSON is malformed"),
    (b'{"type":"ping"', "truncated"),
    (b'{"type":"ping"} {}', "trailing characters"),
    (b'\xef\xbb\xbf{"type":"ping"}', "JSON is malformed"),
    (b'{"type":"ping","id":"\xff"}', "not UTF-8"),
    (b"[]", "Expected `object`, got `array`"),
    (b"null", "Expected `object`, got `null`"),
    (b"{}", "missing required field `type`"),
    (b'{"type":7}', "$.type"),
    (b'{"type":null}', "$.type"),
    (b'{"type":"ping","id":7}', "Expected `str | null`, got `int` - at `$.id`"),
    (b'{"type":"ping","ID":"p1"}', "unknown field `ID`"),
    (b'{"type":"message","parts":{}}', "$.parts"),
    (b'{"type":"message","parts":[null]}', "$.parts[0]"),
    (b'{"type":"message","parts":[{"type":"text","text":1}]}', "$.parts[0].text"),
    (b'{"type":"message","parts":[{"text":"no type"}]}', "missing required field `type` - at `$.parts[0]`"),
    (
        b'{"type":"message","parts":[{"type":"hologram"}]}',
        "Invalid value 'hologram' - at `$.parts[0].type`",
    ),
    (b'{"type":"message","parts":[{"type":"text","url":"x"}]}', "unknown field `url`"),
    (b'{"type":"message","attributes":{"k":1}}', "$.attributes[...]"),
    (b'{"type":"message","parts":[{"type":"file","inline":"no base64!"}]}', "base64"),
    (b'{"type":"message","parts":[{"type":"file","size_bytes":-1}]}', "$.parts[0].size_bytes"),
    (b'{"type":"message","parts":[{"type":"file","size_bytes":18446744073709551616}]}', "size_bytes must be"),
    (
        b'{"type":"message","parts":[{"type":"file","url":"a","storage_key":"b"}]}',
        "only one of url, storage_key, inline",
    ),
    (b'{"type":"history","before":{"seq":1},"after":{"seq":1}}', "only one of before, after"),
    (b'{"type":"history","limit":4294967296}', "$.limit"),
    (b'{"type":"history","limit":1.5}', "got `float` - at `$.limit`"),
    (b'{"type":"subscribe","conversation":{"kind":"PERSON"}}', "$.conversation.kind"),
    (b'{"type":"subscribe","conversation":{"kind":"unspecified"}}', "$.conversation.kind"),
    (b'{"type":"subscribe","conversation":{"kind":1}}', "$.conversation.kind"),
    (b'{"type":"subscribe","conversation":"group:team"}', "$.conversation"),
    (b'{"type":"signal","data":[]}', "$.data"),
    (b'{"type":"signal","data":{"n":NaN}}', "JSON is malformed"),
    (b'{"type":"signal","data":{"n":1e999}}', "out of range"),
    (b'{"type":"signal","data":{"n":1%s}}' % (b"0" * 400), "out of range"),
    (b'{"type":"cancel","id":7}', "$.id"),
    (b'{"type":"cancel","id":"x","message_id":"a","client_id":"b"}', "only one of message_id, client_id"),
    (b'{"type":"edit","id":"x","parts":{"type":"text"}}', "$.parts"),
    (b'{"type":"edit","id":"x","parts":[{"type":"text","text":7}]}', "$.parts[0].text"),
    (b'{"type":"recall","id":"x","parts":[]}', "parts"),
    (b'{"type":"delivered","position":7}', "$.position"),
    (b'{"type":"signal","data":%s0%s}' % (b'{"a":' * 5000, b"}" * 5000), "nested too deeply"),
]


@pytest.mark.parametrize(("payload", "says"), MALFORMED, ids=[str(row[0][:60]) for row in MALFORMED])
def test_malformed_json_is_refused_with_the_place_and_the_problem(payload: bytes, says: str) -> None:
    refused = refusal(JSON, payload)
    assert refused.entry.code == "MALFORMED_FRAME"
    assert str(refused).startswith("Malformed frame: ")
    assert says in str(refused)


@pytest.mark.parametrize("frame_type", ["", "Message", "connected", "unknown", "x" * 100_000])
def test_an_unknown_type_is_named_in_the_error(frame_type: str) -> None:
    refused = refusal(JSON, json.dumps({"type": frame_type, "id": "m1"}).encode())
    assert refused.entry.code == "UNKNOWN_FRAME_TYPE"
    assert f"Unknown frame type {frame_type[:64]};" in str(refused)
    assert refused.frame_id == "m1"


@pytest.mark.parametrize(
    ("payload", "frame_id"),
    [
        (b'{"type":"message","id":"m1","parts":7}', "m1"),
        (b'{"parts":7,"type":"message","id":"m1"}', "m1"),
        (b'{"id":"m1"}', "m1"),
        (b'{"type":"ping","id":"m1","x":1}', "m1"),
        (b'{"type":"message","parts":7}', ""),
        (b'{"type":"message","id":7}', ""),
        (b'{"type":"ping","x":1,"id":"%s"}' % (b"i" * 128), "i" * 128),
        (b'{"type":"ping","x":1,"id":"%s"}' % (b"i" * 129), ""),
        (b'{"type":"message","id":"m1"', "m1"),
        (b'{"type":"message","id":"m1","parts":[{"type":"text","text":"cut', "m1"),
        (b'{"parts":[{"id":"no"}],"id" : "m1" "x"}', "m1"),
        (b'{"type":"message","id":"m1","reply_to":"\\ud8zz"}', "m1"),
        (b'{"type":"message","id":"m1","reply_to":"\xff"}', "m1"),
        (b'{"type":"message","id":"m1"} {}', "m1"),
        (b'{"type":"message","id":"m1","parts":%s' % (b"[" * 5000), "m1"),
        (b'{"reply_to":"%s","id":"m1"' % (b"x" * 5000), ""),
        (b'["id"]', ""),
    ],
)
def test_the_id_of_a_refused_frame_is_returned_if_it_can_be_read(payload: bytes, frame_id: str) -> None:
    assert refusal(JSON, payload).frame_id == frame_id


def test_an_error_does_not_repeat_a_long_name() -> None:
    assert len(str(refusal(JSON, b'{"type":"ping","%b":1}' % (b"x" * 100_000)))) < 1000


def test_null_is_the_same_as_leaving_a_field_out() -> None:
    payload = b'{"type":"history","id":"h1","conversation":null,"before":null,"after":{"seq":1},"limit":null}'
    assert JSON.decode(payload) == ClientFrame(history={"id": "h1", "after": {"seq": 1}})


@pytest.mark.parametrize("payload", [b"hello", b'{"type":"ping"}', b"\x0a", b"\xff" * 20])
def test_malformed_protobuf_is_refused(payload: bytes) -> None:
    assert refusal(PROTO, payload).entry.code == "MALFORMED_FRAME"


@pytest.mark.parametrize(("payload", "number"), [(b"", "(none)"), (b"\xea\x03\x00", "#61")])
def test_a_protobuf_without_a_known_frame_is_of_unknown_type(payload: bytes, number: str) -> None:
    refused = refusal(PROTO, payload)
    assert refused.entry.code == "UNKNOWN_FRAME_TYPE"
    assert f"type {number};" in str(refused)


def nested(levels: int) -> dict[str, object]:
    """Alternating objects and arrays, nested `levels` deep."""
    value: object = {}
    for level in range(levels - 1):
        value = [value] if level % 2 else {"a": value}
    return value if isinstance(value, dict) else {"a": value[0]}


FREE_FORM = {
    "signal": lambda levels: ClientFrame(signal={"name": "n", "data": nested(levels)}),
    "custom": lambda levels: ClientFrame(message={"parts": [{"custom": {"data": nested(levels)}}]}),
    "edit": lambda levels: ClientFrame(edit={"parts": [{"custom": {"data": nested(levels)}}]}),
}


@pytest.mark.parametrize("make", FREE_FORM.values(), ids=FREE_FORM.keys())
def test_free_form_values_may_be_nested_up_to_the_limit_on_either_encoding(make) -> None:
    assert PROTO.decode(make(MAX_DEPTH).SerializeToString()) == make(MAX_DEPTH)
    assert refusal(PROTO, make(MAX_DEPTH + 1).SerializeToString()).entry.code == "MALFORMED_FRAME"
    for levels in (MAX_DEPTH + 1, 200):
        payload = json.dumps({"type": "signal", "data": nested(levels)}).encode()
        assert f"more than {MAX_DEPTH} levels" in str(refusal(JSON, payload))
    payload = json.dumps({"type": "signal", "name": "n", "data": nested(MAX_DEPTH)}).encode()
    assert JSON.decode(payload) == FREE_FORM["signal"](MAX_DEPTH)


def test_accepted_frames_can_be_parsed_in_a_batch_of_the_link() -> None:
    data: object = {}
    for _ in range(MAX_DEPTH - 1):
        data = {"a": data}
    frame = ClientFrame(message={"parts": [{"custom": {"data": data}}]})
    # Unknown groups, as deep as protobuf parses.
    unknown_groups = b"\xa3\x06" * 99 + b"\xa4\x06" * 99
    decoded = PROTO.decode(frame.SerializeToString() + unknown_groups)
    batch = LinkRequest(entries=[EdgeEntry(frame=ConnectionFrame(connection=1, frame=decoded))])
    assert LinkRequest.FromString(batch.SerializeToString()) == batch
    assert decoded == frame


def refusal(codec: Codec, payload: bytes) -> FrameRefused:
    with pytest.raises(FrameRefused) as caught:
        codec.decode(payload)
    return caught.value
