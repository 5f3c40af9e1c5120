"""schemathesis finds no deviation of an edge from its OpenAPI document."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING

import httpx
import pytest

from tests.e2e.fleet import fleet_of
from tests.e2e.fuzzing_schema import fuzzing_schema

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.long

#: All checks that apply: a schema cannot say which well-formed requests are valid together.
CHECKS = [
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_headers_conformance",
    "response_schema_conformance",
    "negative_data_rejection",
    "unsupported_method",
    "allow_header_conformance",
]
EXAMPLES = os.environ.get("TRUNKLINE_FUZZ_EXAMPLES", "20")


def test_a_fuzzer_finds_no_deviation(tmp_path: Path) -> None:
    with fleet_of(tmp_path / "data") as fleet:
        url = f"http://{fleet.processes[1].address}"
        document = fuzzing_schema(httpx.get(f"{url}/openapi.json", trust_env=False).json(), "demo")
        (tmp_path / "openapi.json").write_text(json.dumps(document))
        command = [sys.executable, "-m", "schemathesis.cli", "run", "openapi.json", "--url", url]
        command += ["--phases", "coverage,fuzzing", "--checks", ",".join(CHECKS), "--no-color"]
        command += ["--max-examples", EXAMPLES, "--warnings", "off", "--suppress-health-check", "all"]
        if os.environ.get("CI") == "true":
            command += ["--generation-deterministic"]
        found = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert found.returncode == 0, found.stdout + found.stderr
