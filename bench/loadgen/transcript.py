"""Transcript of one listener of a streamed reply: raw bytes, parsed later."""

from array import array
from collections import Counter

from bench.loadgen.reply_frames import Frame, decode
from bench.loadgen.reply_text import DELTA_BYTES, marks_of
from bench.loadgen.websocket_frames import CLOSE, next_frame

MAX_BUFFERED_BYTES = 64 * 1024
"""Above this size frames are parsed at once, as whole texts in every frame would exhaust the memory."""


class Transcript:
    """Received bytes with their times, and the text they yield by the protocol's rules for clients."""

    __slots__ = (
        "_data",
        "_encoding",
        "_last",
        "_sizes",
        "_texts",
        "_times",
        "bytes_by_kind",
        "faults",
        "frames",
        "indexes",
        "read_ns",
        "sent_us",
    )

    def __init__(self, encoding: str) -> None:
        self._encoding = encoding
        self._data = bytearray()
        #: Time of each read, and length of the data after it.
        self._times, self._sizes = array("q"), array("q")
        self._texts: dict[str, str] = {}
        self._last = ""
        #: For each received delta: time of receipt, time of sending, index.
        self.read_ns, self.sent_us, self.indexes = array("q"), array("q"), array("q")
        self.frames: Counter[str] = Counter()
        self.bytes_by_kind: Counter[str] = Counter()
        self.faults: Counter[str] = Counter()

    def take(self, chunk: memoryview, now_ns: int) -> None:
        """Append bytes read from the socket."""
        self._data += chunk
        self._times.append(now_ns)
        self._sizes.append(len(self._data))
        if len(self._data) > MAX_BUFFERED_BYTES:
            self.parse()

    def parse(self) -> None:
        """Parse all complete frames and discard their bytes."""
        data, at, reads = bytes(self._data), 0, 0
        while (header := next_frame(data, at)) and header[2] <= len(data):
            opcode, start, end = header
            while self._sizes[reads] < end:
                reads += 1
            if opcode < CLOSE:
                self._handle(data[start:end], end - at, self._times[reads])
            elif opcode == CLOSE:
                self.faults["closed by the server"] += 1
            at = end
        while reads < len(self._sizes) and self._sizes[reads] <= at:
            reads += 1
        del self._data[:at]
        self._times = self._times[reads:]
        self._sizes = array("q", [size - at for size in self._sizes[reads:]])

    @property
    def text(self) -> str:
        """Text of the only message; empty if there are several."""
        return next(iter(self._texts.values())) if len(self._texts) == 1 else ""

    def _handle(self, payload: bytes, size: int, now_ns: int) -> None:
        frame = decode(payload, self._encoding)
        self.frames[frame.kind] += 1
        self.bytes_by_kind[frame.kind] += size
        if frame.kind == "rejected":
            self.faults[payload.decode(errors="replace")[:200]] += 1
        if frame.message_id is not None and frame.kind != "end":
            self._last = frame.message_id
        if frame.kind == "open":
            self._texts[self._last] = frame.text
        elif frame.kind == "delta":
            self._add(frame, now_ns)
        elif frame.kind == "end" and frame.is_whole:
            self._texts[frame.message_id or ""] = frame.text

    def _add(self, frame: Frame, now_ns: int) -> None:
        before = self._texts.get(self._last, "")
        if frame.first is not None and frame.first * DELTA_BYTES != len(before):
            self.faults["delta with a wrong index"] += 1
        text = before + frame.text
        if frame.is_whole:
            text = frame.text
            if not text.startswith(before):
                self.faults["text that does not extend the one before"] += 1
        self._texts[self._last] = text
        try:
            for sent_us, index in marks_of(text[len(before) :]):
                self.read_ns.append(now_ns)
                self.sent_us.append(sent_us)
                self.indexes.append(index)
        except ValueError:
            self.faults["delta that was never sent"] += 1
