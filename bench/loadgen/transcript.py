"""What one listener of a streamed reply received: kept as it comes, and gone through later."""

from array import array
from collections import Counter

from bench.loadgen.reply_frames import Frame, read
from bench.loadgen.reply_text import DELTA_BYTES, marks_of
from bench.loadgen.websocket_frames import CLOSE, next_frame

MOST_KEPT_BYTES = 64 * 1024
"""Beyond this the frames are gone through at once: whole texts in every frame would fill the memory."""


class Transcript:
    """Bytes and when they came, and what they say by the rules that the protocol gives to clients."""

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
        "handed_us",
        "indexes",
        "read_ns",
    )

    def __init__(self, encoding: str) -> None:
        self._encoding = encoding
        self._data = bytearray()
        #: Of each read: when, and how long the data was then.
        self._times, self._sizes = array("q"), array("q")
        self._texts: dict[str, str] = {}
        self._last = ""
        #: Of each delta received.
        self.read_ns, self.handed_us, self.indexes = array("q"), array("q"), array("q")
        self.frames: Counter[str] = Counter()
        self.bytes_by_kind: Counter[str] = Counter()
        self.faults: Counter[str] = Counter()

    def take(self, chunk: memoryview, now_ns: int) -> None:
        """More was read from the socket."""
        self._data += chunk
        self._times.append(now_ns)
        self._sizes.append(len(self._data))
        if len(self._data) > MOST_KEPT_BYTES:
            self.follow()

    def follow(self) -> None:
        """Goes through the frames that are there in whole, and forgets their bytes."""
        data, at, reads = bytes(self._data), 0, 0
        while (header := next_frame(data, at)) and header[2] <= len(data):
            opcode, start, end = header
            while self._sizes[reads] < end:
                reads += 1
            if opcode < CLOSE:
                self._hear(data[start:end], end - at, self._times[reads])
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
        """The text of the one message there is; empty where there are several."""
        return next(iter(self._texts.values())) if len(self._texts) == 1 else ""

    def _hear(self, payload: bytes, size: int, now_ns: int) -> None:
        frame = read(payload, self._encoding)
        self.frames[frame.kind] += 1
        self.bytes_by_kind[frame.kind] += size
        if frame.kind == "refused":
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
            self.faults["a delta with another index than the text goes on with"] += 1
        text = before + frame.text
        if frame.is_whole:
            text = frame.text
            if not text.startswith(before):
                self.faults["a text that does not begin as the one before"] += 1
        self._texts[self._last] = text
        try:
            for handed_us, index in marks_of(text[len(before) :]):
                self.read_ns.append(now_ns)
                self.handed_us.append(handed_us)
                self.indexes.append(index)
        except ValueError:
            self.faults["a delta that nobody has said"] += 1
