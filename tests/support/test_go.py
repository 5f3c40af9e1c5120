"""Tests of `go.py`."""

from __future__ import annotations

import shutil
import subprocess
from typing import Any

import pytest

from tests.support import go


def test_a_network_that_answers_nothing_skips_the_tests(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(command: list[str], *_: Any, **__: Any) -> None:
        raise subprocess.TimeoutExpired(command, 60)

    monkeypatch.setattr(shutil, "which", lambda program: program)
    monkeypatch.setattr(subprocess, "run", run)
    monkeypatch.setattr(go, "ROOT", go.ROOT / "build" / "test_go")
    monkeypatch.setattr(shutil, "copytree", lambda *_: None)
    with pytest.raises(pytest.skip.Exception, match="the Go modules of parrot cannot be downloaded"):
        go.go_program("parrot")
