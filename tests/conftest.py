"""Applies to every test: see hang_detector, failed_tests, pure_tests, long_tests, scratch_folder."""

from __future__ import annotations

import os

import pytest

from tests.support.failed_tests import FailedTests
from tests.support.hang_detector import HangDetector
from tests.support.long_tests import LongTests
from tests.support.postgres import close_shared_servers, shared_server
from tests.support.pure_tests import PureTests
from tests.support.scratch_folder import use_memory

# Connections to this machine need no proxy that the environment may name; children inherit this.
_NO_PROXY = [os.environ.get("no_proxy") or os.environ.get("NO_PROXY"), "127.0.0.1,localhost,::1"]
os.environ["no_proxy"] = os.environ["NO_PROXY"] = ",".join(filter(None, _NO_PROXY))


def pytest_configure(config: pytest.Config) -> None:
    """Register them; the stderr is the one that pytest does not capture yet."""
    use_memory()
    config.addinivalue_line("markers", "pure: neither opens sockets nor starts processes; set by folder")
    config.addinivalue_line("markers", "io: opens sockets or starts processes in a folder of pure tests")
    config.addinivalue_line("markers", "long: takes ten seconds or more; its file runs first")
    config.add_cleanup(close_shared_servers)
    config.pluginmanager.register(HangDetector(os.dup(2)))
    config.pluginmanager.register(FailedTests())
    config.pluginmanager.register(LongTests())
    config.pluginmanager.register(PureTests(alone=config.option.markexpr == "pure"))


@pytest.fixture
def postgres_schema() -> str:
    """DSN of an empty schema of the newest PostgreSQL, for one test; skips the test without PostgreSQL."""
    return shared_server().fresh_schema()
