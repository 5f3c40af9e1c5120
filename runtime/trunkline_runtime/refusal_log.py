"""Rate-limited logging of refusals."""

from __future__ import annotations

import time
from collections.abc import Callable

import structlog

_log = structlog.get_logger()

#: Further refusals are only counted, so that refused callers cannot fill a disk.
LINES_PER_S = 5


class RefusalLog:
    """Logs at most LINES_PER_S refusals a second; a line counts those suppressed before it."""

    def __init__(self, event: str, now: Callable[[], float] = time.monotonic) -> None:
        """`event` is the event of every line."""
        self._event = event
        self._now = now
        self._second = 0
        self._lines = 0
        self.suppressed = 0

    def write(self, **fields: object) -> None:
        """Log a refusal; empty fields are left out, and none may be secret."""
        second = int(self._now())
        if second != self._second:
            self._second, self._lines = second, 0
        if self._lines >= LINES_PER_S:
            self.suppressed += 1
            return
        self._lines += 1
        fields["suppressed"], self.suppressed = self.suppressed, 0
        _log.warning(self._event, **{name: value for name, value in fields.items() if value})
