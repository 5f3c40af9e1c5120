"""The examples of clients/python/README.md run against real processes, and its lists are complete."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import trunkline_client
from trunkline_client import TrunklineError

from tests.support.patience import patient
from tests.support.processes import ROOT, Process, edge_process, router_process

PAGE = (ROOT / "clients" / "python" / "README.md").read_text()
PROGRAMS = dict(re.findall(r"```python (\w+)\n(.*?)```", PAGE, re.DOTALL))


def output(program: str, router: str, edge: str) -> str:
    """Runs a program of the page to its end; returns its output."""
    program = program.replace("127.0.0.1:50051", router).replace("127.0.0.1:8080", edge)
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=patient(30), check=False
    )
    assert done.stderr == ""
    return done.stdout


def test_the_client_gets_the_reply_of_the_worker(tmp_path: Path) -> None:
    with router_process(tmp_path) as router, edge_process(router.address) as edge:
        worker = PROGRAMS["worker"].replace("127.0.0.1:50051", router.address)
        # A message that is sent before the worker attaches waits for it.
        with Process([sys.executable, "-c", worker], {}, "the worker", tmp_path):
            assert output(PROGRAMS["client"], router.address, edge.address) == "hello… \n"


def test_the_backend_broadcasts(tmp_path: Path) -> None:
    with router_process(tmp_path) as router:
        printed = output(PROGRAMS["backend"], router.address, "127.0.0.1:1")
    assert re.fullmatch(r"\w+-1 reached 0 connections\n", printed)


def test_the_page_names_every_exception() -> None:
    exceptions = {
        name
        for name in trunkline_client.__all__
        if isinstance(value := getattr(trunkline_client, name), type) and issubclass(value, TrunklineError)
    }
    named = set(re.findall(r"`(\w+)`", PAGE.partition("## Errors")[2].partition("## Command line")[0]))
    assert exceptions <= named
