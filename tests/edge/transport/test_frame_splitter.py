"""Bytes of a client, cut into frames."""

from __future__ import annotations

import random

import pytest
from trunkline_edge.transport.frame_splitter import FramePart, FrameSplitter, InvalidLength
from websockets.frames import Frame, Opcode

SIZES = (0, 1, 125, 126, 127, 65_535, 65_536, 70_000)


def parts_of(splitter: FrameSplitter) -> list[FramePart]:
    parts = []
    while (part := splitter.next_part()) is not None:
        parts.append(part)
    return parts


@pytest.mark.parametrize("mask", [True, False])
@pytest.mark.parametrize("seed", range(20))
def test_the_parts_are_the_frames_however_the_bytes_are_cut(seed: int, mask: bool) -> None:
    rng = random.Random(seed)
    frames = [
        Frame(rng.choice([Opcode.TEXT, Opcode.BINARY]), bytes(rng.choice(SIZES)), rng.random() < 0.5)
        for _ in range(12)
    ]
    data = b"".join(frame.serialize(mask=mask) for frame in frames)
    splitter, parts = FrameSplitter(), []
    while data:
        cut = rng.choice([1, 2, 5, 9, 64, 1000, 100_000])
        splitter.feed(data[:cut])
        data = data[cut:]
        if rng.random() < 0.8:
            parts += parts_of(splitter)
    parts += parts_of(splitter)
    starts = [part for part in parts if part.is_start]
    assert [(part.opcode, part.completes_message) for part in starts] == [
        (frame.opcode, frame.fin) for frame in frames
    ]
    expected = b"".join(Frame(f.opcode, f.data, f.fin).serialize(mask=False) for f in frames)
    if not mask:
        assert b"".join(part.data for part in parts) == expected


def test_a_length_with_its_top_bit_set_is_invalid() -> None:
    splitter = FrameSplitter()
    splitter.feed(b"\x82\xff\x80" + bytes(7))
    with pytest.raises(InvalidLength):
        splitter.next_part()


def test_control_frames_are_told_apart() -> None:
    splitter = FrameSplitter()
    splitter.feed(Frame(Opcode.PING, b"hi").serialize(mask=True))
    part = splitter.next_part()
    assert part is not None
    assert (part.is_control, part.completes_message) == (True, False)
    assert splitter.next_part() is None
