"""WebSocket frames of the load generators, checked against the `websockets` library."""

import pytest
from websockets.frames import Frame, Opcode
from websockets.protocol import OPEN
from websockets.server import ServerProtocol

from bench.loadgen.websocket_frames import BINARY, PING, TEXT, client_frame, next_frame, upgrade_request

SIZES = (0, 1, 125, 126, 65535, 65536)


def test_upgrade_request_is_accepted_with_its_subprotocol() -> None:
    """A server accepts the request and selects the requested subprotocol."""
    server = ServerProtocol(subprotocols=["trunkline.v1.json"])
    server.receive_data(upgrade_request("127.0.0.1:1", "/v1/connect?user=u1", "trunkline.v1.json"))
    [request] = server.events_received()
    server.send_response(server.accept(request))
    assert server.state is OPEN
    assert request.path == "/v1/connect?user=u1"
    assert server.subprotocol == "trunkline.v1.json"


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("opcode", [TEXT, BINARY])
def test_client_frame_is_read_by_a_server(size: int, opcode: int) -> None:
    """Frames of every length encoding are decoded unchanged."""
    server = ServerProtocol(state=OPEN, max_size=None)
    server.receive_data(client_frame(b"x" * size, opcode))
    [frame] = server.events_received()
    assert (frame.opcode, frame.data) == (opcode, b"x" * size)


@pytest.mark.parametrize("size", SIZES)
def test_next_frame_finds_the_end_of_a_server_frame(size: int) -> None:
    """Also if the frame follows another one."""
    before = Frame(Opcode.PING, b"p").serialize(mask=False)
    stream = before + Frame(Opcode.TEXT, b"x" * size).serialize(mask=False)
    assert next_frame(stream, 0) == (PING, 2, 3)
    assert next_frame(stream, len(before)) == (TEXT, len(stream) - size, len(stream))


@pytest.mark.parametrize("size", SIZES)
def test_next_frame_returns_none_for_an_incomplete_header(size: int) -> None:
    """At any cut."""
    frame = Frame(Opcode.TEXT, b"x" * size).serialize(mask=False)
    header_size = len(frame) - size
    assert all(next_frame(frame[:cut], 0) is None for cut in range(header_size))
    assert next_frame(frame[:header_size], 0) == (TEXT, header_size, len(frame))
