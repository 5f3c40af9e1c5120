"""Text that code writes to sys.stderr without logging it, as lines in the format of our own."""

from __future__ import annotations

import io

import structlog

from trunkline_runtime.line_throttle import LineThrottle

_log = structlog.get_logger()

MAX_LINE_CHARS = 300

_TRACEBACK = "Traceback "


class StrayOutput(io.TextIOBase):
    """Replaces sys.stderr: logs each line written to it, throttled; a traceback is one line, its last.

    gRPC prints tracebacks when a caller leaves before its answer. A line without end stays until it ends,
    cut to MAX_LINE_CHARS.
    """

    def __init__(self) -> None:
        super().__init__()
        self._throttle = LineThrottle()
        self._partial = ""
        self._in_traceback = False

    def writable(self) -> bool:
        """See io.IOBase."""
        return True

    def write(self, text: str) -> int:
        """Log the lines that `text` completes."""
        *lines, rest = (self._partial + text).split("\n")
        self._partial = rest[:MAX_LINE_CHARS]
        for line in lines:
            self._take(line[:MAX_LINE_CHARS])
        return len(text)

    def _take(self, line: str) -> None:
        if self._in_traceback and (not line or line[0].isspace()):
            return
        self._in_traceback = line.startswith(_TRACEBACK)
        if self._in_traceback or not line.strip():
            return
        suppressed = self._throttle.take()
        if suppressed is not None:
            counted = {"suppressed": suppressed} if suppressed else {}
            _log.warning("a library wrote to stderr", text=line, **counted)
