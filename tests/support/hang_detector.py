"""Ends the run when a test hangs, and writes where every thread stood."""

from __future__ import annotations

import faulthandler
import threading
import time
from typing import TYPE_CHECKING

import pytest

from tests.support.patience import patient

if TYPE_CHECKING:
    from collections.abc import Generator

#: Longer than the bound on any single wait, which reports a failure better than the end of the run does.
LIMIT_S = 60.0
#: Further seconds that a test gets for each second of CPU that it uses.
PER_CPU_S = 20.0
#: CPU that one test may use: what computes for longer spins.
MAX_CPU_S = 120.0


class HangDetector:
    """A watchdog for tests that wait; a test that computes is given time as it uses the CPU.

    On a busy machine a test that computes gets a small share of a core, and no limit on its duration fits
    every load. A hanging test uses next to no CPU. The interpreter's own watchdog, which works even if the
    GIL is never released, ends the run; a thread postpones that every `interval_s` by what the test has
    earned. A test that spins is ended by its CPU.

    Args:
        stderr: file descriptor for the tracebacks; pytest must not capture it.
    """

    def __init__(self, stderr: int, limit_s: float | None = None, interval_s: float = 5.0) -> None:
        self._stderr = stderr
        self._limit_s = limit_s
        self._interval_s = interval_s
        #: Held while the watchdog is set or cancelled.
        self._lock = threading.Lock()
        self._test: _Test | None = None
        self._thread: threading.Thread | None = None

    @pytest.hookimpl(wrapper=True, trylast=True)
    def pytest_runtest_protocol(self) -> Generator[None, object, object]:
        """Watch one test, with its fixtures."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._postpone, name="hang detector", daemon=True)
            self._thread.start()
        with self._lock:
            self._test = _Test(self._limit_s or patient(LIMIT_S))
            self._set()
        try:
            return (yield)
        finally:
            with self._lock:
                self._test = None
                faulthandler.cancel_dump_traceback_later()

    def _postpone(self) -> None:
        while True:
            time.sleep(self._interval_s)
            with self._lock:
                if self._test is not None:
                    self._set()

    def _set(self) -> None:
        assert self._test is not None
        left_s = self._test.left_s()
        # Out of time: what was set last is about to end the run.
        if left_s > 0:
            faulthandler.dump_traceback_later(left_s, exit=True, file=self._stderr)


class _Test:
    """How long a test may still take."""

    def __init__(self, limit_s: float) -> None:
        self._limit_s = limit_s
        self._began, self._cpu = time.monotonic(), time.process_time()

    def left_s(self) -> float:
        """Seconds until it counts as hanging, at the earliest."""
        cpu_s = time.process_time() - self._cpu
        waited_s = time.monotonic() - self._began
        return min(self._limit_s + PER_CPU_S * cpu_s - waited_s, MAX_CPU_S - cpu_s)
