"""The example and the tables in docs/http.md are correct."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from typing import TYPE_CHECKING

import pytest
from trunkline.v1.catalogue import ENTRIES

from tests.support.patience import patient
from tests.support.processes import ROOT, edge_process, router_process

if TYPE_CHECKING:
    from pathlib import Path

PAGE = (ROOT / "docs" / "http.md").read_text()


def output(command: str) -> str:
    """Return the output of a command."""
    run = ["sh", "-c", command]
    return subprocess.run(run, capture_output=True, text=True, timeout=patient(20), check=True).stdout


@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")
def test_the_example_answers_the_same_twice(tmp_path: Path) -> None:
    (command,) = re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL)
    answer = re.findall(r"```json\n(.*?)```", PAGE, re.DOTALL)[0]
    with router_process(tmp_path) as router, edge_process(router.address) as edge:
        there = command.replace("127.0.0.1:8080", edge.address).replace("curl", "curl -sS --noproxy '*'")
        first, second = output(there), output(there)
    assert first == second
    received = json.loads(first)
    received["messageId"] = received["position"]["epoch"] = "…"
    assert received == json.loads(answer)


def test_each_code_is_in_the_row_of_its_status() -> None:
    rows = re.findall(r"^\| ([\d, ]+) \|.*\| (.*) \|$", PAGE, re.MULTILINE)
    assert len(rows) == 17
    for statuses, codes in rows:
        for code in re.findall(r"`([A-Z_]+)`", codes):
            if code in ENTRIES:
                assert str(ENTRIES[code].http_status) in statuses, code


def test_each_status_of_the_catalogue_is_explained() -> None:
    explained = set(re.findall(r"\d{3}", "".join(re.findall(r"^\| ([\d, ]+) \|", PAGE, re.MULTILINE))))
    assert {str(entry.http_status) for entry in ENTRIES.values() if entry.http_status} <= explained
