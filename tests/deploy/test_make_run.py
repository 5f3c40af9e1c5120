"""`make run`: printed commands work, a stop request is honoured, and no process is left behind."""

from __future__ import annotations

import base64
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import urllib.request
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.support.patience import patient
from tests.support.processes import ROOT, Process, children, command_line, ended, linux

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.long

RUN = [sys.executable, str(ROOT / "deploy" / "run.py")]


@contextmanager
def running(data: Path, command: list[str] = RUN, **more: str) -> Iterator[tuple[Process, list[str]]]:
    """`make run` on free ports, and the lines it printed until everything was ready."""
    env = more | {
        "TRUNKLINE_EDGE_LISTEN": "127.0.0.1:0",
        "TRUNKLINE_ROUTER_LISTEN": "127.0.0.1:0",
        "TRUNKLINE_DATA_DIR": str(data),
    }
    lines: list[str] = []

    def last(line: str) -> bool:
        lines.append(line)
        return " chat" in line

    with Process.start(command, env, name="make run", ready=last) as process:
        yield process, lines


def pasted(line: str, *more: str) -> str:
    """Output of a printed command that is pasted into a shell, with more arguments."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("TRUNKLINE_")}
    words = [*shlex.split(line), *more]
    done = subprocess.run(
        words, cwd=ROOT, env=env, capture_output=True, text=True, timeout=patient(20), check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_last_line_printed_is_a_command_that_talks_to_an_agent(tmp_path: Path) -> None:
    key = base64.b64encode(bytes(32)).decode()
    with running(tmp_path, TRUNKLINE_DATA_KEY=key) as (process, lines):
        assert "I am the guide" in pasted(lines[-1], "--once", "hello")
        assert "You said: hello" in pasted(lines[-1], "--agent", "echo", "--once", "hello")
        holders = [pid for pid in children(process.pid) if key in Path(f"/proc/{pid}/environ").read_text()]
        services = [command for pid in holders if not (command := command_line(pid))[1].endswith("guard.py")]
        assert ["trunkline_router" in command for command in services] == [True]
        assert process.running


def test_the_printed_broadcast_command_and_urls_work(tmp_path: Path) -> None:
    with running(tmp_path) as (_, lines):
        (broadcast,) = [line for line in lines if " broadcast" in line]
        assert pasted(broadcast)
        for url in re.findall(r"http://\S+", "\n".join(lines)):
            with urllib.request.urlopen(url, timeout=patient(5)) as answer:
                assert answer.status == 200


@linux
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["SIGINT", "SIGTERM"])
def test_a_signal_stops_everything_without_a_traceback_and_the_exit_code_is_0(
    tmp_path: Path, number: int
) -> None:
    with running(tmp_path) as (process, _):
        started = children(process.pid)
        assert len(started) == 5, "router, edge, two agents and guard"
        process.signal(number)
        assert process.wait() == 0
        assert all(ended(pid) for pid in started)
        assert process.stderr == ""
    for log in (tmp_path / "logs").iterdir():
        assert "Traceback" not in log.read_text(), log.name


@linux
def test_a_killed_run_leaves_no_process_and_can_be_started_again(tmp_path: Path) -> None:
    with running(tmp_path) as (process, _):
        started = children(process.pid)
        process.signal(signal.SIGKILL)
        process.wait()
        assert all(ended(pid) for pid in started)
    with running(tmp_path) as (process, lines):
        assert "again" in pasted(lines[-1], "--agent", "echo", "--once", "again")


@linux
def test_everything_ends_when_make_is_killed(tmp_path: Path) -> None:
    make = [sys.executable, "-c", "import subprocess, sys; subprocess.run(sys.argv[1:])", *RUN]
    with running(tmp_path, make, MAKELEVEL="1") as (process, _):
        (run,) = children(process.pid)
        started = children(run)
        process.signal(signal.SIGKILL)
        assert all(ended(pid) for pid in (run, *started))


@linux
def test_a_dead_process_is_named_with_its_cause_and_the_others_are_stopped(tmp_path: Path) -> None:
    with running(tmp_path) as (process, _):
        started = children(process.pid)
        (edge,) = [pid for pid in started if "trunkline_edge" in command_line(pid)]
        os.kill(edge, signal.SIGKILL)
        assert process.wait() == 1
        assert "The edge was killed by SIGKILL." in process.stderr
        assert all(ended(pid) for pid in started)


@pytest.mark.parametrize("variable", ["TRUNKLINE_EDGE_LISTEN", "TRUNKLINE_ROUTER_LISTEN"])
def test_a_port_in_use_is_reported_in_one_line_that_names_the_variable_to_change(
    tmp_path: Path, variable: str
) -> None:
    env = {
        "TRUNKLINE_EDGE_LISTEN": "127.0.0.1:0",
        "TRUNKLINE_ROUTER_LISTEN": "127.0.0.1:0",
        "TRUNKLINE_DATA_DIR": str(tmp_path),
    }
    with socket.create_server(("127.0.0.1", 0)) as taken:
        listen = f"127.0.0.1:{taken.getsockname()[1]}"
        with Process(RUN, env | {variable: listen}, "make run", ROOT) as process:
            assert process.wait() == 1
            (line,) = process.stderr.splitlines()
    assert listen in line
    assert f"make run {variable}=" in line
