"""Framing of what clients are sent: WebSocket frames (RFC 6455, section 5.2), unmasked and unfragmented; HTTP
chunks (RFC 9112, section 7.1).
"""

from __future__ import annotations

from struct import Struct

_TEXT = 0x81
_BINARY = 0x82

_SHORT = Struct(">BB").pack
_MEDIUM = Struct(">BBH").pack
_LONG = Struct(">BBQ").pack


def websocket_frame(payload: bytes, binary: bool) -> bytes:
    """Return the payload with its header, ready for any number of sockets."""
    opcode = _BINARY if binary else _TEXT
    size = len(payload)
    if size < 126:
        return _SHORT(opcode, size) + payload
    if size < 1 << 16:
        return _MEDIUM(opcode, 126, size) + payload
    return _LONG(opcode, 127, size) + payload


def count_websocket_frames(data: bytes) -> int:
    """Count the frames in `data`, which consists of whole frames made by `websocket_frame`."""
    frames = start = 0
    while start < len(data):
        size = data[start + 1]
        start += 2
        if size > 125:
            digits = 2 if size == 126 else 8
            size = int.from_bytes(data[start : start + digits], "big")
            start += digits
        start += size
        frames += 1
    return frames


def http_chunk(payload: bytes) -> bytes:
    """Return a payload that is not empty as one chunk, ready for any number of responses."""
    return b"%x\r\n%b\r\n" % (len(payload), payload)
