"""The process helper of the tests starts processes and leaves none behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from tests.support.patience import patient
from tests.support.processes import ROOT, Process, ended, linux, listening

SLEEP = "import time; time.sleep(600)"


def python(source: str) -> list[str]:
    return [sys.executable, "-c", source]


def test_a_process_is_ready_when_it_prints_its_address() -> None:
    source = f"""print("log"); print('{{"listening": "127.0.0.1:7"}}'); {SLEEP}"""
    with Process.start(python(source)) as process:
        assert process.address == "127.0.0.1:7"
        assert process.running
        assert process.terminate() == -signal.SIGTERM


def test_a_process_that_dies_before_it_is_ready_is_reported_with_its_stderr() -> None:
    with pytest.raises(AssertionError, match="shop exited with code 3; its stderr:\nclosed"):
        Process.start(python("import sys; print('closed', file=sys.stderr); sys.exit(3)"), name="shop")


def test_a_process_that_never_gets_ready_is_reported_in_time() -> None:
    with (
        Process.start(python(f"print('one'); {SLEEP}"), ready=bool) as process,
        pytest.raises(AssertionError, match="did not print the expected line"),
    ):
        process.line(timeout_s=0.01)


@linux
def test_killing_a_process_kills_its_descendants() -> None:
    source = (
        f"import subprocess, sys; print(subprocess.Popen([sys.executable, '-c', {SLEEP!r}]).pid); {SLEEP}"
    )
    with Process(python(source), {}, "parent", ROOT) as process:
        child = int(process.line())
        process.kill()
        assert ended(child)


@linux
def test_processes_end_when_the_tests_are_killed() -> None:
    source = f"""
import os, signal, sys
from tests.support.processes import Process
print(Process.start([sys.executable, "-c", "print(1); {SLEEP}"], ready=bool).pid, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "deploy")])}
    tests = subprocess.run(
        python(source), env=env, capture_output=True, text=True, check=False, timeout=patient(20)
    )
    assert tests.returncode == -signal.SIGKILL, tests.stderr
    assert ended(int(tests.stdout))


def test_only_a_readiness_line_is_recognised() -> None:
    assert listening('{"listening": "127.0.0.1:1"}') == "127.0.0.1:1"
    assert [listening(line) for line in ("", "hello", "[]", "1", '{"event": "start"}')] == [""] * 5
