"""`make certs` creates certificates, prints the variables to set, and replaces files only by force."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.support.patience import patient
from tests.support.processes import ROOT

NAMES = {"ca", "router", "edge", "edge-client"}


def make(folder: Path, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "deploy/certs.py"],
        cwd=ROOT,
        env={"CERTS": str(folder), **env},
        capture_output=True,
        text=True,
        timeout=patient(30),
        check=False,
    )


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_all_certificates_are_created_and_the_printed_variables_name_them(tmp_path: Path) -> None:
    folder = tmp_path / "my certs"
    done = make(folder)
    assert done.returncode == 0, done.stderr
    assert set(files(folder)) == {f"{name}.{kind}" for name in NAMES for kind in ("pem", "key")}
    assert {path.stat().st_mode & 0o777 for path in folder.glob("*.key")} == {0o600}
    # The printed lines are shell commands.
    shell = subprocess.run(
        ["bash", "-euc", f"{done.stdout}\nenv"], capture_output=True, text=True, check=True
    )
    for name in ("ROUTER_CA", "ROUTER_CERT", "ROUTER_KEY", "TLS_CERT", "TLS_KEY", "TLS_CLIENT_CA", "CA"):
        (line,) = [each for each in shell.stdout.splitlines() if each.startswith(f"TRUNKLINE_{name}=")]
        assert Path(line.partition("=")[2]).is_file()


def test_existing_certificates_are_replaced_only_by_force(tmp_path: Path) -> None:
    make(tmp_path)
    before = files(tmp_path)
    again = make(tmp_path)
    assert again.returncode == 1
    assert "FORCE=1" in again.stderr
    assert files(tmp_path) == before
    assert make(tmp_path, FORCE="1").returncode == 0
    after = files(tmp_path)
    assert all(after[name] != before[name] for name in before)
