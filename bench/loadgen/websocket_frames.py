"""Client side of a WebSocket (RFC 6455) as bytes: upgrade request, outgoing and incoming frames."""

import struct

CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0x0, 0x1, 0x2, 0x8, 0x9, 0xA
HEAD_END = b"\r\n\r\n"
#: Payload of a close frame with code 1000.
GOODBYE = b"\x03\xe8"


def upgrade_request(host: str, target: str, subprotocol: str | None) -> bytes:
    """Return an upgrade request with a fixed key and without compression."""
    lines = [
        f"GET {target} HTTP/1.1",
        f"Host: {host}",
        "Upgrade: websocket",
        "Connection: Upgrade",
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
        "Sec-WebSocket-Version: 13",
    ]
    if subprotocol:
        lines.append(f"Sec-WebSocket-Protocol: {subprotocol}")
    return "\r\n".join(lines).encode() + HEAD_END


def client_frame(payload: bytes, opcode: int, fin: bool = True) -> bytes:
    """Return a frame, masked with the key 0, which is legal and leaves the payload unchanged.

    Without `fin`, the message continues in further frames.
    """
    size, first = len(payload), (0x80 if fin else 0) | opcode
    if size < 126:
        head = struct.pack("!BB", first, 0x80 | size)
    elif size < 65536:
        head = struct.pack("!BBH", first, 0x80 | 126, size)
    else:
        head = struct.pack("!BBQ", first, 0x80 | 127, size)
    return head + b"\0\0\0\0" + payload


def next_frame(stream: bytes | bytearray, at: int) -> tuple[int, int, int] | None:
    """Return `(opcode, payload start, end)` of the server's frame at `at`; None if its header is incomplete.

    The end of the frame may lie beyond the stream.
    """
    available = len(stream) - at
    if available < 2:
        return None
    opcode, size = stream[at] & 0x0F, stream[at + 1] & 0x7F
    if size < 126:
        return opcode, at + 2, at + 2 + size
    if size == 126:
        if available < 4:
            return None
        return opcode, at + 4, at + 4 + int.from_bytes(stream[at + 2 : at + 4], "big")
    if available < 10:
        return None
    return opcode, at + 10, at + 10 + int.from_bytes(stream[at + 2 : at + 10], "big")
