"""The limit of file descriptors is raised at start; running out of them is counted, and logged once."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

from tests.support.patience import patient
from tests.support.processes import ROOT, environment

pytestmark = pytest.mark.io

_RAISE = """
import resource, sys
soft, hard, connections = map(int, sys.argv[1:])
resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
from trunkline_runtime import logs
logs.configure("json")
from trunkline_runtime.descriptors import watch
print(watch.raise_limit(connections, "TRUNKLINE_X"), resource.getrlimit(resource.RLIMIT_NOFILE)[0])
"""

_RUN_OUT = """
import logging, os, resource
from trunkline_runtime import library_logs, logs
from trunkline_runtime.descriptors import watch
logs.configure("json")
library_logs.install()
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
watch.raise_limit(1, "TRUNKLINE_X")
for episode in range(2):
    held = []
    error = None
    while error is None:
        try:
            held.append(os.open(os.devnull, os.O_RDONLY))
        except OSError as raised:
            error = raised
    for _ in range(3):
        watch.check()
        logging.getLogger("asyncio").error("socket.accept() out of system resource", exc_info=error)
    for each in held:
        os.close(each)
    watch.check()
print(watch.failures)
"""


def run(script: str, *words: object) -> tuple[list[int], list[dict[str, Any]]]:
    """Run a script; return the numbers that it prints, and its log lines."""
    done = subprocess.run(
        [sys.executable, "-c", script, *map(str, words)],
        cwd=ROOT,
        env=environment({}),
        capture_output=True,
        text=True,
        timeout=patient(30),
        check=True,
    )
    return [int(number) for number in done.stdout.split()], [
        json.loads(line) for line in done.stderr.splitlines()
    ]


def test_the_limit_is_raised_to_what_the_connections_need() -> None:
    (fitting, soft), [line] = run(_RAISE, 64, 2000, 1000)
    assert fitting == 1000
    assert 1000 < soft < 2000
    assert (line["level"], line["limit"]) == ("info", soft)


def test_a_limit_that_suffices_is_left_alone() -> None:
    assert run(_RAISE, 1500, 2000, 1000) == ([1000, 1500], [])


def test_a_hard_limit_that_is_too_low_is_reported_with_a_remedy() -> None:
    (fitting, soft), lines = run(_RAISE, 64, 128, 1000)
    assert soft == 128
    assert 64 < fitting < 128
    warning = lines[-1]
    assert (warning["level"], warning["connections"], warning["configured"]) == ("warning", fitting, 1000)
    assert "ulimit" in warning["remedy"]
    assert "TRUNKLINE_X" in warning["remedy"]


def test_running_out_is_logged_once_an_episode_and_counted_each_time() -> None:
    [failures], lines = run(_RUN_OUT)
    assert failures == 12
    assert [line["level"] for line in lines] == ["error", "info"] * 2
    assert "out of file descriptors" in lines[0]["event"]
