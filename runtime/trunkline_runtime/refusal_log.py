"""Rate-limited logging of refusals."""

from __future__ import annotations

import time
from collections.abc import Callable

import structlog

from trunkline_runtime.line_throttle import LineThrottle

_log = structlog.get_logger()


class RefusalLog:
    """Logs refusals, throttled; a line counts those suppressed before it."""

    def __init__(self, event: str, now: Callable[[], float] = time.monotonic) -> None:
        """`event` is the event of every line."""
        self._event = event
        self._throttle = LineThrottle(now)

    def write(self, **fields: object) -> None:
        """Log a refusal; empty fields are left out, and none may be secret."""
        suppressed = self._throttle.take()
        if suppressed is not None:
            fields["suppressed"] = suppressed
            _log.warning(self._event, **{name: value for name, value in fields.items() if value})
