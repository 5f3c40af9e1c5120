"""Summary of many transcripts: latencies, bytes, and deviations from the sent texts."""

from collections import Counter
from typing import Any

from bench.loadgen.latency import Latencies
from bench.loadgen.reply_text import digest, due_us
from bench.loadgen.transcript import Transcript


class ReplySummary:
    """Sums over listeners; `digests` contains the digest of each sent reply."""

    def __init__(self, start_ns: int, digests: list[str]) -> None:
        self._start_us = start_ns // 1000
        self._digests = digests
        self._from_sent, self._from_due = Latencies(), Latencies()
        self._faults: Counter[str] = Counter()
        self._frames: Counter[str] = Counter()
        self._bytes: Counter[str] = Counter()
        self._wrong = Counter(wrong_texts=0, opened_again=0, ended_not_once=0)
        self._listeners = self._text_bytes = self._deltas = 0

    def add(self, transcript: Transcript, reply: int) -> None:
        """Add the transcript of one listener of a reply."""
        self._listeners += 1
        self._text_bytes += len(transcript.text)
        self._deltas += len(transcript.indexes)
        self._frames += transcript.frames
        self._bytes += transcript.bytes_by_kind
        self._faults += transcript.faults
        self._wrong["wrong_texts"] += digest(transcript.text) != self._digests[reply]
        self._wrong["ended_not_once"] += transcript.frames["end"] != 1
        self._wrong["opened_again"] += transcript.frames["open"] > 1
        deltas = zip(transcript.read_ns, transcript.sent_us, transcript.indexes, strict=True)
        for read_ns, sent_us, index in deltas:
            read_us = read_ns // 1000 - self._start_us
            self._from_sent.add_ns((read_us - sent_us) * 1000)
            self._from_due.add_ns((read_us - due_us(reply, index)) * 1000)

    def figures(self) -> dict[str, Any]:
        """Return the figures for the harness."""
        return {
            "listeners": self._listeners,
            "text_bytes": self._text_bytes,
            "deltas": self._deltas,
            "frames": dict(self._frames),
            "bytes": dict(self._bytes),
            "wrong": dict(self._wrong),
            "faults": dict(self._faults.most_common(5)),
            "latency": self._from_sent.figures(),
            "latency_from_due": self._from_due.figures(),
        }
