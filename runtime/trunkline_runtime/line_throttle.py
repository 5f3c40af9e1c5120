"""Bound of the log lines that one source may cause."""

from __future__ import annotations

import time
from collections.abc import Callable

#: Further lines are only counted, so that whoever causes them cannot fill a disk.
LINES_PER_S = 5


class LineThrottle:
    """Lets at most LINES_PER_S lines a second pass, and counts the suppressed ones between two of them."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._second = 0
        self._lines = 0
        self._suppressed = 0

    def take(self) -> int | None:
        """Return how many lines were suppressed since the last one; None if this one is suppressed, too."""
        second = int(self._now())
        if second != self._second:
            self._second, self._lines = second, 0
        if self._lines >= LINES_PER_S:
            self._suppressed += 1
            return None
        self._lines += 1
        suppressed, self._suppressed = self._suppressed, 0
        return suppressed
