"""Compares what many sockets receive, without looking at each frame of each of them."""

from bisect import bisect_right
from collections.abc import Callable

from bench.loadgen.websocket_frames import next_frame

RECOGNISED_BY = 32
"""Bytes of a frame that tell whether it is one for a single socket."""


class StreamMismatchError(Exception):
    """A listener received other bytes than the listeners before it."""


class SharedStream:
    """The one stream of frames that all listeners of a topic must receive.

    Whoever is first to receive a byte defines it; everybody else's is compared with it. Frames that
    come to each socket when they will are no part of the stream: control frames, and those whose first
    bytes `is_aside` recognises.
    """

    __slots__ = ("data", "is_aside", "starts")

    def __init__(self, is_aside: Callable[[bytes], bool] = lambda _: False) -> None:
        self.is_aside = is_aside
        self.data = bytearray()
        self.starts = [0]
        """Where each frame begins; the last entry is where the next one does, or did, begin."""

    def payloads(self) -> list[bytes]:
        """The payloads of all whole frames, in order."""
        found = []
        for at in self.starts[:-1]:
            header = next_frame(self.data, at)
            assert header
            found.append(bytes(self.data[header[1] : header[2]]))
        return found


class Reader:
    """One listener's place in a shared stream."""

    __slots__ = ("_carry", "aside", "offset", "stream")

    def __init__(self, stream: SharedStream) -> None:
        self.stream = stream
        self.offset = 0
        self.aside: list[tuple[int, bytes]] = []
        """`(opcode, payload)` of frames that are no part of the stream; the owner empties it."""
        self._carry = b""

    def feed(self, chunk: memoryview) -> None:
        """Takes what the socket received; raises StreamMismatchError at the first byte that differs."""
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
        """Goes through frame by frame: puts some aside, compares or defines the others."""
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
        """Compares or defines the bytes of a frame that begins at `offset`."""
        stream, begins = self.stream, self.offset
        known = min(len(frame), len(stream.data) - begins)
        if not stream.data.startswith(frame[:known], begins):
            raise StreamMismatchError(f"after {begins} bytes: {frame[:200]!r}")
        stream.data += frame[known:]
        self.offset = begins + len(frame)
        if whole and stream.starts[-1] == begins:
            stream.starts.append(self.offset)
