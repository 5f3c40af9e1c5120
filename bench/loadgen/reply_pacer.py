"""What whoever streams replies does alike, on the bridge and in a baseline: says what is due, and counts."""

import time
from collections.abc import AsyncIterator

from bench.commands import Result
from bench.loadgen.latency import Latencies
from bench.loadgen.open_loop import OpenLoop, due_items
from bench.loadgen.reply_text import TICKS_PER_S, ReplyScript, due_us

LATE_NS = 100_000_000
"""So long after the end, what has not been handed over is given up."""

Due = list[tuple[int, int, str]]
"""Of each delta: reply, index and text."""


class ReplyPacer:
    """A run that starts now."""

    def __init__(self, replies: int, seconds: float) -> None:
        self.script = ReplyScript(replies)
        self._late = Latencies()
        self._start_ns = self._last_ns = time.monotonic_ns()
        self._end_ns = self._start_ns + int(seconds * 1e9) + LATE_NS
        self._pace = OpenLoop(TICKS_PER_S, seconds, self._start_ns)

    async def rounds(self, most_ticks: int) -> AsyncIterator[Due]:
        """What is to be handed over at once, which counts as handed over now."""
        async for ticks in due_items(self._pace, self._end_ns, most_ticks):
            handed_us = (time.monotonic_ns() - self._start_ns) // 1000
            replies = [reply for tick in ticks for reply in self.script.turn(tick)]
            due = [(reply, *self.script.say(reply, handed_us)) for reply in replies]
            for reply, index, _ in due:
                self._late.add_ns((handed_us - due_us(reply, index)) * 1000)
            yield due
            self._last_ns = time.monotonic_ns()

    def answer(self) -> Result:
        """For the harness; `elapsed_s` is until the last delta was handed over."""
        return {
            "offered": sum(len(self.script.turn(tick)) for tick in range(self._pace.total)),
            "handed": sum(self.script.counts()),
            "elapsed_s": (self._last_ns - self._start_ns) / 1e9,
            "start_ns": self._start_ns,
            "digests": self.script.digests(),
            "late": self._late.figures(),
        }
