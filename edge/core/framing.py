"""WebSocket frames from server to client (RFC 6455, section 5.2): unmasked, unfragmented."""

from __future__ import annotations

_TEXT = 0x81
_BINARY = 0x82


def framed(payload: bytes, binary: bool) -> bytes:
    """The payload with its header, ready for any number of sockets."""
    opcode = _BINARY if binary else _TEXT
    size = len(payload)
    if size < 126:
        return bytes((opcode, size)) + payload
    if size < 1 << 16:
        return bytes((opcode, 126)) + size.to_bytes(2, "big") + payload
    return bytes((opcode, 127)) + size.to_bytes(8, "big") + payload
