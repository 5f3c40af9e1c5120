"""Comparison of the streams that many sockets receive, without parsing each frame of each socket."""

from bisect import bisect_right
from collections.abc import Callable

from bench.loadgen.websocket_frames import next_frame

RECOGNISED_BY = 32
"""Bytes of a frame that suffice to recognise a frame for a single socket."""


class StreamMismatchError(Exception):
    """A listener received different bytes from the listeners before it."""


class SharedStream:
    """Stream of frames that all listeners of a topic must receive.

    The first listener to receive a byte defines it; all others are compared with it. Frames that reach each
    socket at a different time are not part of the stream: control frames, and frames whose first bytes
    `is_aside` recognises.
    """

    __slots__ = ("data", "is_aside", "starts")

    def __init__(self, is_aside: Callable[[bytes], bool] = lambda _: False) -> None:
        self.is_aside = is_aside
        self.data = bytearray()
        self.starts = [0]
        """Start offset of each frame; the last entry is the start of the next one."""

    def payloads(self) -> list[bytes]:
        """Return the payloads of all complete frames, in order."""
        found = []
        for at in self.starts[:-1]:
            header = next_frame(self.data, at)
            assert header
            found.append(bytes(self.data[header[1] : header[2]]))
        return found


class Reader:
    """Position of one listener in a shared stream."""

    __slots__ = ("_carry", "aside", "offset", "stream")

    def __init__(self, stream: SharedStream) -> None:
        self.stream = stream
        self.offset = 0
        self.aside: list[tuple[int, bytes]] = []
        """`(opcode, payload)` of frames outside the stream; the owner empties the list."""
        self._carry = b""

    def feed(self, chunk: memoryview) -> None:
        """Process received bytes; raise StreamMismatchError at the first difference."""
        if not self._carry and self.stream.data.startswith(chunk, self.offset):
            self.offset += len(chunk)
            return
        rest = self._carry + bytes(chunk)
        self._carry = b""
        data = self.stream.data
        known = min(len(data) - self.offset, len(rest))
        if data.startswith(rest[:known], self.offset):
            self.offset += known
            rest = rest[known:]
        if rest:
            self._feed_frames(rest)

    def _feed_frames(self, rest: bytes) -> None:
        """Process frame by frame: put some aside, compare or define the others."""
        stream = self.stream
        begins = stream.starts[bisect_right(stream.starts, self.offset) - 1]
        rest = bytes(stream.data[begins : self.offset]) + rest
        at = 0
        while at < len(rest):
            header = next_frame(rest, at)
            whole = header is not None and header[2] <= len(rest)
            end = header[2] if header and whole else len(rest)
            control = rest[at] & 0x08
            self.offset = begins
            if not whole and (control or end - at < RECOGNISED_BY):
                self._carry = rest[at:]
                return
            if control or stream.is_aside(rest[at : at + RECOGNISED_BY]):
                if not header or not whole:
                    self._carry = rest[at:]
                    return
                self.aside.append((header[0], rest[header[1] : end]))
            else:
                self._take(rest[at:end], whole)
                begins = self.offset
            at = end

    def _take(self, frame: bytes, whole: bool) -> None:
        """Compare or define the bytes of a frame that begins at `offset`."""
        stream, begins = self.stream, self.offset
        known = min(len(frame), len(stream.data) - begins)
        if not stream.data.startswith(frame[:known], begins):
            raise StreamMismatchError(f"after {begins} bytes: {frame[:200]!r}")
        stream.data += frame[known:]
        self.offset = begins + len(frame)
        if whole and stream.starts[-1] == begins:
            stream.starts.append(self.offset)
