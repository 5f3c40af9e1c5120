"""Paces the deltas of streamed replies, for Trunkline's producer and the baselines alike."""

import time
from collections.abc import AsyncIterator

from bench.commands import Result
from bench.loadgen.latency import Latencies
from bench.loadgen.open_loop import OpenLoop, due_items
from bench.loadgen.reply_text import DELTAS_PER_S, SLOTS, ReplyScript, due_us

LATE_NS = 100_000_000
"""Default grace period after the end; deltas not sent by then are dropped."""

Due = list[tuple[int, int, str]]
"""Reply, index and text of each due delta."""


class ReplyPacer:
    """Deltas of one run, which starts on construction."""

    def __init__(
        self, replies: int, seconds: float, *, deltas_per_s: int = DELTAS_PER_S, late_ns: int = LATE_NS
    ) -> None:
        self.script = ReplyScript(replies)
        self._late = Latencies()
        self._start_ns = self._last_ns = time.monotonic_ns()
        self._end_ns = self._start_ns + int(seconds * 1e9) + late_ns
        self._deltas_per_s = deltas_per_s
        self._pace = OpenLoop(deltas_per_s * SLOTS, seconds, self._start_ns)

    async def due_deltas(self, max_ticks: int) -> AsyncIterator[Due]:
        """Yield lists of due deltas; each counts as sent when it is yielded."""
        async for ticks in due_items(self._pace, self._end_ns, max_ticks):
            sent_us = (time.monotonic_ns() - self._start_ns) // 1000
            replies = [reply for tick in ticks for reply in self.script.due_replies(tick)]
            due = [(reply, *self.script.next_delta(reply, sent_us)) for reply in replies]
            for reply, index, _ in due:
                self._late.add_ns((sent_us - due_us(reply, index, self._deltas_per_s)) * 1000)
            yield due
            self._last_ns = time.monotonic_ns()

    def result(self) -> Result:
        """Return the figures for the harness; `elapsed_s` ends with the last sent delta."""
        return {
            "offered": sum(len(self.script.due_replies(tick)) for tick in range(self._pace.total)),
            "handed": sum(self.script.counts()),
            "elapsed_s": (self._last_ns - self._start_ns) / 1e9,
            "start_ns": self._start_ns,
            "digests": self.script.digests(),
            "late": self._late.figures(),
        }
