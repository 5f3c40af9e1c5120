"""The wire form of golden_frames.txt never changes."""

from __future__ import annotations

from pathlib import Path

import pytest
from google.protobuf import text_format
from trunkline.v1.frame_pb2 import ClientFrame, ServerFrame
from trunkline_edge.dialects.native.handshake import CODECS

JSON, PROTO = CODECS["trunkline.v1.json"], CODECS["trunkline.v1.proto"]


def golden(side: str) -> list[tuple[str, str]]:
    """JSON and protobuf text format of the frames from one side."""
    blocks = Path(__file__).with_name("golden_frames.txt").read_text("utf-8").strip().split("\n\n")
    frames = [block.removeprefix(f"{side} ").partition("\n") for block in blocks if block.startswith(side)]
    return [(as_json, text) for as_json, _, text in frames]


CLIENT, SERVER = golden("client"), golden("server")


@pytest.mark.parametrize(("as_json", "text"), CLIENT, ids=[row[0][:60] for row in CLIENT])
def test_a_client_frame_is_decoded_alike_from_both_encodings(as_json: str, text: str) -> None:
    frame = text_format.Parse(text, ClientFrame())
    assert JSON.decode(as_json.encode()) == frame
    assert PROTO.decode(frame.SerializeToString()) == frame


@pytest.mark.parametrize(("as_json", "text"), SERVER, ids=[row[0][:60] for row in SERVER])
def test_a_server_frame_is_encoded_to_the_letter(as_json: str, text: str) -> None:
    frame = text_format.Parse(text, ServerFrame())
    assert JSON.encode(frame).decode() == as_json
    assert PROTO.encode(frame) == frame.SerializeToString()


def test_every_type_of_frame_has_a_golden_frame() -> None:
    for message, rows in ((ClientFrame, CLIENT), (ServerFrame, SERVER)):
        types = {text_format.Parse(text, message()).WhichOneof("frame") for _, text in rows}
        assert types - {None} == set(message.DESCRIPTOR.fields_by_name)
