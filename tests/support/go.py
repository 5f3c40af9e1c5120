"""Programs in Go, built below build/.

    worker = Process.start([str(go_program("go_worker"))], ready=bool)

A test is skipped if Go is not installed, or if its modules can be neither found nor downloaded.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.support.patience import patient
from tests.support.processes import ROOT

if TYPE_CHECKING:
    from collections.abc import Mapping

#: A first build compiles gRPC, which takes half a minute.
BUILD_TIMEOUT_S = patient(300)
#: Modules that `.ci/run` has downloaded are found at once.
DOWNLOAD_TIMEOUT_S = patient(60)


def go_program(example: str) -> Path:
    """Return the program of a folder in examples/, generated and built. See the module for skips."""
    if shutil.which("go") is None:
        pytest.skip("go is not installed")
    return _built(example)


@cache
def _built(example: str) -> Path:
    folder = ROOT / "build" / example
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(ROOT / "examples" / example, folder)
    python = {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    try:
        is_downloaded = _run(["go", "mod", "download"], folder, python, DOWNLOAD_TIMEOUT_S).returncode == 0
    except subprocess.TimeoutExpired:  # a network that answers nothing
        is_downloaded = False
    if not is_downloaded:
        pytest.skip(f"the Go modules of {example} cannot be downloaded")
    program = folder / "bin" / example
    for command in (["go", "generate"], ["go", "vet", "."], ["go", "build", "-o", str(program), "."]):
        done = _run(command, folder, python)
        assert done.returncode == 0, f"{command}:\n{done.stderr}"
    return program


def _run(
    command: list[str], folder: Path, env: Mapping[str, str], timeout_s: float = BUILD_TIMEOUT_S
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        cwd=folder,
        env={**os.environ, **env},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )
