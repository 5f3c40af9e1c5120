"""Open-loop load: due times at an offered rate, and timers more precise than the event loop's."""

import asyncio
import threading
import time
from collections.abc import AsyncIterator


class OpenLoop:
    """Open-loop schedule: item `n` is due at `start_ns + n / rate`, whether or not earlier ones are done."""

    __slots__ = ("rate", "start_ns", "taken", "total")

    def __init__(self, rate: float, seconds: float, start_ns: int) -> None:
        self.rate, self.start_ns = rate, start_ns
        self.total = int(rate * seconds)
        self.taken = 0

    def due_ns(self, number: int) -> int:
        """Return the due time of an item."""
        return self.start_ns + int(number * 1e9 / self.rate)

    def take(self, now_ns: int, at_most: int) -> range:
        """Take the next due numbers, `at_most` of them."""
        due = min(self.total, int((now_ns - self.start_ns) * self.rate / 1e9) + 1)
        first = self.taken
        self.taken = max(first, min(due, first + at_most))
        return range(first, self.taken)

    def wait_s(self, now_ns: int) -> float:
        """Return the seconds until the next item is due; 0 if it is due now."""
        return max(0.0, (self.due_ns(self.taken) - now_ns) / 1e9)


class PreciseTimer:
    """Timer with a precision of 0.1 ms for one coroutine; event loops round to milliseconds."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._expired = asyncio.Event()
        self._armed = threading.Event()
        self._wait_s: float | None = 0.0
        self._thread = threading.Thread(target=self._sleep, daemon=True)
        self._thread.start()

    async def wait(self, seconds: float) -> None:
        """Sleep for `seconds`; one caller at a time."""
        self._expired.clear()
        self._wait_s = seconds
        self._armed.set()
        await self._expired.wait()

    def stop(self) -> None:
        """Stop the timer's thread."""
        self._wait_s = None
        self._armed.set()
        self._thread.join()

    def _sleep(self) -> None:
        while self._armed.wait() and self._wait_s is not None:
            self._armed.clear()
            time.sleep(self._wait_s)
            self._loop.call_soon_threadsafe(self._expired.set)


async def due_items(schedule: OpenLoop, end_ns: int, at_most: int) -> AsyncIterator[range]:
    """Yield ranges of up to `at_most` due numbers until all are taken or `end_ns` is reached."""
    timer = PreciseTimer()
    try:
        while schedule.taken < schedule.total and (now := time.monotonic_ns()) < end_ns:
            if due := schedule.take(now, at_most):
                yield due
            else:
                await timer.wait(schedule.wait_s(now))
    finally:
        timer.stop()
