"""Cuts the bytes from a client into WebSocket frames, by their headers alone (RFC 6455, section 5.2)."""

from __future__ import annotations

from typing import NamedTuple

try:
    from websockets.speedups import apply_mask
except ImportError:
    from websockets.utils import apply_mask

#: First bytes of frames that are whole messages.
_TEXT = 0x81
_BINARY = 0x82
#: Bit of the first byte; set on the last fragment of a message, and on a message that is not fragmented.
_FIN = 0x80
_OPCODE = 0x0F
#: Bit of the second byte.
_MASK = 0x80
#: Bytes of the smallest masked frame.
_SMALLEST = 6
#: Opcodes from here on are those of control frames.
_FIRST_CONTROL = 0x8


class InvalidLength(Exception):
    """A 64-bit length has its top bit set."""


class FramePart(NamedTuple):
    """A frame or, if the client has not sent all of it yet, one part of it."""

    data: bytes
    opcode: int
    is_final: bool
    #: The part begins with the header.
    is_start: bool

    @property
    def completes_message(self) -> bool:
        """The frame is the last one of a message."""
        return self.is_final and self.opcode < _FIRST_CONTROL

    @property
    def is_control(self) -> bool:
        """The frame is a ping, pong or close."""
        return self.opcode >= _FIRST_CONTROL


class FrameSplitter:
    """Returns one frame at a time, so that the caller may charge for a frame, or stop, before it is parsed.

    Keeps what was not taken yet. A caller that stops before `next_part` returns None must stop reading, too.
    """

    __slots__ = ("_at", "_data", "_first", "_missing")

    def __init__(self) -> None:
        self._data = b""
        self._at = 0
        #: First byte of the frame of which a part was returned, and its bytes that were not received yet.
        self._first = 0
        self._missing = 0

    def feed(self, data: bytes) -> None:
        """Add bytes from the client."""
        self._data = self._data[self._at :] + data if self._data else data
        self._at = 0

    def clear(self) -> None:
        """Drop what was not taken."""
        self._data, self._at = b"", 0

    def next_message(self, max_bytes: int) -> tuple[bytes, bool] | None:
        """Take the next frame if it is a whole message of at most 64 KiB; return payload and whether binary.

        Nearly all frames are. None leaves the next frame, of any other form, for `next_part`. The caller must
        not call this between the fragments of a message.
        """
        data, at = self._data, self._at
        received = len(data) - at
        if received < _SMALLEST or self._missing:
            return None
        first, size = data[at], data[at + 1] - _MASK
        if (first != _TEXT and first != _BINARY) or size < 0 or size == 127:
            return None
        start = at + 6
        if size == 126:
            size = int.from_bytes(data[at + 2 : at + 4], "big")
            start = at + 8
        end = start + size
        if size > max_bytes or end > len(data):
            return None
        if end == len(data):
            self.clear()
        else:
            self._at = end
        return apply_mask(data[start:end], data[start - 4 : start]), first == _BINARY

    def next_part(self) -> FramePart | None:
        """Take the next frame, or the received part of it; None if its header is not complete.

        Raises InvalidLength.
        """
        data, at = self._data, self._at
        received = len(data) - at
        is_start = not self._missing
        if is_start:
            size = _frame_size(data, at, received)
            if not size:
                if not received:
                    self.clear()
                return None
            self._first = data[at]
        else:
            size = self._missing
            if not received:
                self.clear()
                return None
        taken = min(size, received)
        self._missing = size - taken
        if taken == received:
            part = data[at:] if at else data
            self.clear()
        else:
            part = data[at : at + taken]
            self._at = at + taken
        first = self._first
        return FramePart(part, first & _OPCODE, first >= _FIN, is_start)

    def __repr__(self) -> str:
        return f"<FrameSplitter {len(self._data) - self._at} bytes>"


def _frame_size(data: bytes, at: int, received: int) -> int:
    """Return the size of a frame with its header; 0 if that is not complete. Raises InvalidLength."""
    if received < 2:
        return 0
    second = data[at + 1]
    size = second & 0x7F
    header = 2
    if size > 125:
        header = 4 if size == 126 else 10
        if received < header:
            return 0
        size = int.from_bytes(data[at + 2 : at + header], "big")
        if size >> 63:
            raise InvalidLength
    return header + size + (4 if second & _MASK else 0)
