"""Exchanges have state, so each of their frames is encoded once and in order."""

from __future__ import annotations

import pytest
from trunkline.v1.frame_pb2 import DeltaFrame, ServerFrame
from trunkline_edge.core.deltas import DeltaRange, EncodedDeltas
from trunkline_edge.core.encoding import count_frames, encode_frame
from trunkline_edge.dialects.exchange import Exchange


class Recorder(Exchange):
    """Records the frames, and writes what each adds."""

    def __init__(self) -> None:
        super().__init__()
        self.frames: list[ServerFrame] = []

    def received(self, frame: ServerFrame) -> bytes:
        self.frames.append(ServerFrame.FromString(frame.SerializeToString()))
        delta = frame.delta
        return f"{delta.text or delta.reasoning}\n\n".encode()


def ranges() -> list[DeltaRange]:
    contents = [("text", "a"), ("text", "b"), ("reasoning", "c"), ("text", "d")]
    return [
        DeltaRange("m", index, index + 1, kind, text, 1, index) for index, (kind, text) in enumerate(contents)
    ]


@pytest.mark.parametrize("form", ["short", "long"])
def test_deltas_are_encoded_in_order_and_each_names_its_message(form: str) -> None:
    recorder = Recorder()
    encoded = EncodedDeltas(recorder, ranges())
    data = getattr(encoded, form)()
    assert data == b"4\r\nab\n\n\r\n3\r\nc\n\n\r\n3\r\nd\n\n\r\n"
    assert getattr(encoded, form)() == data
    assert [frame.delta for frame in recorder.frames] == [
        DeltaFrame(message_id="m", index=0, text="ab"),
        DeltaFrame(message_id="m", index=2, reasoning="c"),
        DeltaFrame(message_id="m", index=3, text="d"),
    ]
    assert count_frames(recorder, data) == 3


def test_deltas_that_an_exchange_ignores_are_offered_once() -> None:
    recorder = Recorder()
    recorder.end(b"")
    encoded = EncodedDeltas(recorder, ranges())
    assert encoded.long() == encoded.long() == b""
    assert encode_frame(recorder, ServerFrame(delta=DeltaFrame(text="x"))) == b""
