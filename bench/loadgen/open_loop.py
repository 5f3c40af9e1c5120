"""When things are due at an offered rate, and waking up then more exactly than an event loop's timers."""

import asyncio
import threading
import time
from collections.abc import AsyncIterator


class OpenLoop:
    """An open loop: item `n` is due at `start_ns + n / rate`, whether or not earlier ones are done."""

    __slots__ = ("given", "rate", "start_ns", "total")

    def __init__(self, rate: float, seconds: float, start_ns: int) -> None:
        self.rate, self.start_ns = rate, start_ns
        self.total = int(rate * seconds)
        self.given = 0

    def due_ns(self, number: int) -> int:
        """When an item is due."""
        return self.start_ns + int(number * 1e9 / self.rate)

    def take(self, now_ns: int, at_most: int) -> range:
        """The numbers that are due and have not been taken before."""
        due = min(self.total, int((now_ns - self.start_ns) * self.rate / 1e9) + 1)
        first = self.given
        self.given = max(first, min(due, first + at_most))
        return range(first, self.given)

    def wait_s(self, now_ns: int) -> float:
        """How long until the next item is due; 0 where one is."""
        return max(0.0, (self.due_ns(self.given) - now_ns) / 1e9)


class PreciseTimer:
    """Wakes a coroutine after a short time, to within 0.1 ms; event loops round to whole milliseconds."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._rung = asyncio.Event()
        self._set = threading.Event()
        self._wait_s: float | None = 0.0
        self._thread = threading.Thread(target=self._sleep, daemon=True)
        self._thread.start()

    async def wait(self, seconds: float) -> None:
        """Returns after `seconds`; one caller at a time."""
        self._rung.clear()
        self._wait_s = seconds
        self._set.set()
        await self._rung.wait()

    def stop(self) -> None:
        """Ends the alarm's thread."""
        self._wait_s = None
        self._set.set()
        self._thread.join()

    def _sleep(self) -> None:
        while self._set.wait() and self._wait_s is not None:
            self._set.clear()
            time.sleep(self._wait_s)
            self._loop.call_soon_threadsafe(self._rung.set)


async def due_items(pace: OpenLoop, end_ns: int, at_most: int) -> AsyncIterator[range]:
    """The numbers that are due, each time that there are some; no more once the time is over."""
    alarm = PreciseTimer()
    try:
        while pace.given < pace.total and (now := time.monotonic_ns()) < end_ns:
            if due := pace.take(now, at_most):
                yield due
            else:
                await alarm.wait(pace.wait_s(now))
    finally:
        alarm.stop()
