"""Log records of libraries, and exceptions that nobody caught, as lines in the format of our own."""

from __future__ import annotations

import logging
import ssl
import sys
import threading
from types import TracebackType
from typing import TYPE_CHECKING

import structlog
from google.protobuf.message import DecodeError

from trunkline_runtime import descriptors
from trunkline_runtime.line_throttle import LineThrottle
from trunkline_runtime.stray_output import StrayOutput

if TYPE_CHECKING:
    from sys import UnraisableHookArgs

_log = structlog.get_logger()

MAX_TEXT_CHARS = 300

#: Exceptions of these packages, and these exceptions, are a peer's doing: a traceback would explain nothing.
_PEER_PACKAGES = frozenset({"grpc", "h11", "websockets"})
_PEER_ERRORS = (ConnectionError, TimeoutError, ssl.SSLError, DecodeError)


class LibraryLogHandler(logging.Handler):
    """Passes log records on to structlog, throttled for each library.

    A line has the first line of the record's text, which is all that is for an operator.
    """

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        #: By top-level package, so its size is bounded.
        self._throttles: dict[str, LineThrottle] = {}

    def emit(self, record: logging.LogRecord) -> None:
        """See logging.Handler."""
        error = record.exc_info[1] if record.exc_info else None
        if descriptors.is_exhaustion(error):
            descriptors.watch.note()
            return
        try:
            library = record.name.partition(".")[0]
            suppressed = self._throttles.setdefault(library, LineThrottle()).take()
            if suppressed is not None:
                self._write(record, error, suppressed)
        except Exception as problem:  # a line that cannot be written must not fail its caller
            _log.error("a log record was unreadable", logger=record.name, problem=type(problem).__name__)

    def _write(self, record: logging.LogRecord, error: BaseException | None, suppressed: int) -> None:
        fields: dict[str, object] = {"logger": record.name}
        if suppressed:
            fields["suppressed"] = suppressed
        if error is not None:
            fields |= describe(error)
        event = _first_line(record.getMessage()) or "an exception was logged"
        _log.log(record.levelno, event, **fields)


def describe(error: BaseException) -> dict[str, object]:
    """Fields for an exception: one line if it is a peer's doing, else the exception with its frames."""
    package = type(error).__module__.partition(".")[0]
    if isinstance(error, _PEER_ERRORS) or package in _PEER_PACKAGES:
        return {"problem": _first_line(f"{type(error).__name__}: {error}")}
    return {"exc_info": error}


def install() -> None:
    """Log everything that libraries and the interpreter would write to stderr by themselves.

    Call it after `logs.configure`, whose lines go to the sys.stderr that is replaced here.
    """
    root = logging.getLogger()
    root.handlers[:] = [LibraryLogHandler()]
    root.setLevel(logging.WARNING)
    logging.captureWarnings(True)
    sys.stderr = StrayOutput()
    sys.excepthook = _uncaught
    threading.excepthook = _uncaught_in_thread
    sys.unraisablehook = _unraisable


def _uncaught(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    if isinstance(error, KeyboardInterrupt):
        sys.__excepthook__(kind, error, trace)
        return
    _log.critical("the process failed", exc_info=error)


def _uncaught_in_thread(args: threading.ExceptHookArgs) -> None:
    name = args.thread.name if args.thread is not None else ""
    _log.error("a thread failed", thread=name, exc_info=args.exc_value or args.exc_type)


def _unraisable(args: UnraisableHookArgs) -> None:
    _log.error(args.err_msg or "an exception was ignored", exc_info=args.exc_value or args.exc_type)


def _first_line(text: str) -> str:
    lines = text.strip().splitlines()
    return lines[0].strip()[:MAX_TEXT_CHARS] if lines else ""
