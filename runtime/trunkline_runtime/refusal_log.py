"""Says in the log who was refused."""

from __future__ import annotations

import time
from collections.abc import Callable

import structlog

_log = structlog.get_logger()

#: What is beyond is only counted: nobody fills a disk by being refused.
LINES_PER_S = 5


class RefusalLog:
    """Writes at most LINES_PER_S lines a second; a line says how many were left out before it."""

    def __init__(self, event: str, now: Callable[[], float] = time.monotonic) -> None:
        """`event` is what each line says first."""
        self._event = event
        self._now = now
        self._second = 0
        self._lines = 0
        self.left_out = 0

    def say(self, **what: object) -> None:
        """Somebody was refused. What is empty is not said; nothing secret may be among it."""
        second = int(self._now())
        if second != self._second:
            self._second, self._lines = second, 0
        if self._lines >= LINES_PER_S:
            self.left_out += 1
            return
        self._lines += 1
        left_out, self.left_out = self.left_out, 0
        what["left_out"] = left_out
        _log.warning(self._event, **{name: value for name, value in what.items() if value})
