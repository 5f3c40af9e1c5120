"""Drops what a failing test leaves open, so that it fails no other test."""

from __future__ import annotations

import gc
import sys
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Generator


class FailedTests:
    """Collects a failed test's garbage at once and in silence.

    The traceback of a failure keeps its sockets, processes and tasks alive. Collected later, they would
    warn of being unclosed, and pytest would fail the test that runs by then. A test that passes has to
    close what it opens: its warnings stay errors.
    """

    def __init__(self) -> None:
        self._failed = False

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(
        self, item: pytest.Item
    ) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        """Note the failure of any phase."""
        report = yield
        self._failed |= report.failed
        return report

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_protocol(self) -> Generator[None, object, object]:
        """Collect once the test and its fixtures are over."""
        try:
            return (yield)
        finally:
            if self._failed:
                self._failed = False
                _collect()


def _collect() -> None:
    # pytest keeps the last failure for a debugger.
    for name in ("last_type", "last_value", "last_traceback", "last_exc"):
        if hasattr(sys, name):
            delattr(sys, name)
    hook = sys.unraisablehook
    sys.unraisablehook = lambda _: None
    try:
        gc.collect()
    finally:
        sys.unraisablehook = hook
