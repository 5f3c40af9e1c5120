"""Messages that come in fragments, and the UTF-8 of text (RFC 6455, sections 5.4 and 8.1)."""

from __future__ import annotations

from codecs import getincrementaldecoder

from websockets.typing import BytesLike

_Utf8Decoder = getincrementaldecoder("utf-8")


class FragmentedMessage:
    """The received part of a message; the protocol limits its size."""

    __slots__ = ("_decoder", "binary", "payload")

    def __init__(self, binary: bool) -> None:
        self.binary = binary
        self.payload = bytearray()
        self._decoder = None if binary else _Utf8Decoder()

    def add(self, data: BytesLike, is_last: bool) -> bool:
        """Add a fragment; return False if the text so far is not UTF-8."""
        self.payload += data
        if self._decoder is None:
            return True
        try:
            self._decoder.decode(data, is_last)
        except UnicodeDecodeError:
            return False
        return True


def is_utf8(text: bytes) -> bool:
    """Return True if the bytes are text."""
    if text.isascii():
        return True
    try:
        text.decode()
    except UnicodeDecodeError:
        return False
    return True
