"""Rules for all tests: bounds stretch with the load, hangs end the run, failures leave nothing behind."""

from __future__ import annotations

import os
import re
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
from tests.support.failed_tests import FailedTests
from tests.support.hang_detector import HangDetector
from tests.support import pure_tests
def pytest_configure(config):
    config.addinivalue_line("markers", "io: does I/O")
    config.addinivalue_line("markers", "pure: does none")
    pure_tests.TESTS = config.rootpath.parent
    config.pluginmanager.register(pure_tests.PureTests(alone=False))
    config.pluginmanager.register(HangDetector(os.dup(2), limit_s=1, interval_s=0.05))
    config.pluginmanager.register(FailedTests())
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


LEAVES = """
import gc, socket, sys
def test_fails():
    left = socket.create_server(("127.0.0.1", 0))
    raise ValueError
def test_is_another():
    # As the next failure would.
    sys.last_value = sys.last_traceback = sys.last_exc = None
    gc.collect()
def test_leaves_a_socket_and_passes():
    socket.create_server(("127.0.0.1", 0))
    gc.collect()
"""


IO = """
import socket, pytest
def test_binds():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
@pytest.mark.io
def test_binds_and_says_so(): test_binds()
"""


def run(folder: Path, source: str) -> subprocess.CompletedProcess[str]:
    (folder / "conftest.py").write_text(CONFTEST)
    (folder / "test_one.py").write_text(source)
    alone = ["-Werror", "-c", "/dev/null", f"--rootdir={folder}", "-p", "no:cacheprovider"]
    return subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            *alone,
            "-o",
            f"pythonpath={ROOT}",
            str(folder),
        ],
        env=os.environ | {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
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


def test_what_a_failing_test_leaves_open_fails_no_other(tmp_path: Path) -> None:
    done = run(tmp_path, LEAVES)
    assert "2 failed, 1 passed" in done.stdout, done
    assert re.search(r"^FAILED .*::test_leaves_a_socket_and_passes\b", done.stdout, re.MULTILINE), done


def test_a_pure_test_that_does_io_fails(tmp_path: Path) -> None:
    (tmp_path / "core").mkdir()
    done = run(tmp_path / "core", IO)
    assert "1 failed, 1 passed" in done.stdout, done
    assert "a pure test does I/O (socket.bind)" in done.stdout, done
