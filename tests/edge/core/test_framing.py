"""WebSocket frame headers, checked with the websockets library's parser."""

from __future__ import annotations

import pytest
from trunkline_edge.core.framing import websocket_frame
from websockets.frames import Opcode

from tests.edge.core.core_harness import parsed


@pytest.mark.parametrize("size", [0, 1, 125, 126, 127, 65535, 65536, 1 << 20])
@pytest.mark.parametrize("binary", [False, True])
def test_a_frame_of_any_size_is_read_back_as_it_was(size: int, binary: bool) -> None:
    payload = b"x" * size
    [frame] = parsed(websocket_frame(payload, binary))
    assert frame.fin
    assert frame.opcode is (Opcode.BINARY if binary else Opcode.TEXT)
    assert frame.data == payload


def test_frames_that_are_joined_are_read_one_by_one() -> None:
    payloads = [b"a" * size for size in (0, 125, 126, 70000, 3)]
    assert [f.data for f in parsed(b"".join(websocket_frame(p, False) for p in payloads))] == payloads
