"""Marks the tests that neither open sockets nor start processes, and holds them to it.

`pytest -m pure` runs them alone, and does not even import the others.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Generator

TESTS = Path(__file__).parents[1]
#: Names of folders with pure tests, wherever they are; a module with `pytestmark = pytest.mark.io` is none.
FOLDERS = {
    "architecture",
    "auth",
    "bench",
    "contract",
    "core",
    "dialects",
    "http",
    "runtime",
    "validators",
    "wired_cores",
}
#: Audit events of the interpreter. gRPC's sockets raise none.
FORBIDDEN = {"socket.bind", "socket.connect", "subprocess.Popen", "os.fork", "os.posix_spawn"}


class PureTests:
    """Selects pure tests, and fails those that do I/O."""

    def __init__(self, alone: bool) -> None:
        #: Only pure tests run.
        self._alone = alone
        self._is_running = False
        sys.addaudithook(self._audit)

    def pytest_ignore_collect(self, collection_path: Path) -> bool | None:
        """Do not import what is not run."""
        if self._alone and collection_path.suffix == ".py" and not _in_pure_folder(collection_path):
            return True
        return None

    @pytest.hookimpl(tryfirst=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """Mark the tests before `-m` selects by marks."""
        for item in items:
            if _in_pure_folder(item.path) and item.get_closest_marker("io") is None:
                item.add_marker(pytest.mark.pure)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Generator[None, object, object]:
        """Watch one test, with its fixtures."""
        self._is_running = item.get_closest_marker("pure") is not None
        try:
            return (yield)
        finally:
            self._is_running = False

    def _audit(self, event: str, _: object) -> None:
        if self._is_running and event in FORBIDDEN:
            raise AssertionError(f"a pure test does I/O ({event}): mark it with pytest.mark.io")


def _in_pure_folder(path: Path) -> bool:
    return path.is_relative_to(TESTS) and not FOLDERS.isdisjoint(path.relative_to(TESTS).parent.parts)
