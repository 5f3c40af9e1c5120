"""Applies to every test: one that hangs ends the run, and one that fails leaves nothing behind."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from tests.support.failed_tests import FailedTests
from tests.support.hang_detector import HangDetector

if TYPE_CHECKING:
    import pytest


def pytest_configure(config: pytest.Config) -> None:
    """Register both; the stderr is the one that pytest does not capture yet."""
    config.pluginmanager.register(HangDetector(os.dup(2)))
    config.pluginmanager.register(FailedTests())
