"""Bounds in tests stretch with the load, and a test that computes does not count as hanging."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from tests.support import patience
from tests.support.patience import patient, under_load
from tests.support.processes import ROOT

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with five times as many busy processes as cores, and no setting."""
    monkeypatch.delenv(patience.SETTING, raising=False)
    monkeypatch.setattr(patience, "load_per_core", lambda: 5.0)


@pytest.mark.usefixtures("load")
def test_bounds_stretch_with_the_load(monkeypatch: pytest.MonkeyPatch) -> None:
    assert (patient(2), under_load(2)) == (10, 10)
    monkeypatch.setattr(patience, "load_per_core", lambda: 0.5)
    assert (patient(2), under_load(2)) == (6, 2)


@pytest.mark.usefixtures("load")
def test_the_setting_replaces_the_load(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(patience.SETTING, "1.5")
    assert (patient(2), under_load(2)) == (3, 3)


#: Run by a pytest of their own, whose detector takes a second without CPU for a hang.
CONFTEST = """
import os
from tests.support.hang_detector import HangDetector
def pytest_configure(config):
    config.pluginmanager.register(HangDetector(os.dup(2), limit_s=1, interval_s=0.05))
"""
COMPUTES = """
import time
def test_computes():
    until = time.monotonic() + 1.5
    while time.monotonic() < until: pass
def test_is_another(): pass
"""
HANGS = """
import threading
def test_hangs(): threading.Event().wait(60)
"""


def run(folder: Path, source: str) -> subprocess.CompletedProcess[str]:
    (folder / "conftest.py").write_text(CONFTEST)
    (folder / "test_one.py").write_text(source)
    alone = ["-c", "/dev/null", f"--rootdir={folder}", "-p", "no:cacheprovider"]
    return subprocess.run(
        [sys.executable, "-m", "pytest", *alone, "-o", f"pythonpath={ROOT}", str(folder)],
        capture_output=True,
        text=True,
        check=False,
        timeout=patient(20),
    )


def test_a_test_that_computes_does_not_count_as_hanging(tmp_path: Path) -> None:
    done = run(tmp_path, COMPUTES)
    assert (done.returncode, "2 passed" in done.stdout) == (0, True), done


def test_a_test_that_hangs_ends_the_run_and_shows_where_it_stood(tmp_path: Path) -> None:
    done = run(tmp_path, HANGS)
    assert done.returncode == 1, done
    assert "in test_hangs" in done.stderr
