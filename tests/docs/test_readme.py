"""The examples in README.md work."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from trunkline_client import Client, text_of

from tests.support.patience import patient
from tests.support.processes import ROOT, Process, edge_process, environment, router_process

if TYPE_CHECKING:
    from pathlib import Path

README = (ROOT / "README.md").read_text()
BACKEND, WORKER = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


def test_the_backend_example_runs(tmp_path: Path) -> None:
    with router_process(tmp_path) as router:
        program = BACKEND.replace("127.0.0.1:50051", router.address)
        done = subprocess.run(
            [sys.executable, "-c", program], capture_output=True, text=True, timeout=patient(20), check=False
        )
    assert done.stderr == ""
    assert re.fullmatch(r"\w{13}-1 reached 0 connections\n", done.stdout)


def test_the_tenant_commands_declare_a_tenant_and_show_a_key(tmp_path: Path) -> None:
    commands = re.findall(r"^\$ \.venv/bin/(trunkline-router tenant .*)$", README, re.MULTILINE)
    assert len(commands) == 2
    with router_process(tmp_path, TRUNKLINE_OPERATOR_KEY="") as router:
        env = environment({"TRUNKLINE_ROUTER": router.address, "TRUNKLINE_DATA_DIR": str(tmp_path)})
        for command in commands:
            done = subprocess.run(
                [str(Path(sys.executable).parent / command.split()[0]), *command.split()[1:]],
                cwd=ROOT,
                env=env,
                capture_output=True,
                text=True,
                timeout=patient(20),
                check=True,
            )
    assert re.fullmatch(r"tl_\w+\n", done.stdout.replace("-", "_"))


@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")
def test_the_curl_example_is_answered(tmp_path: Path) -> None:
    (command,) = re.findall(r"^\$ (curl .*?)\n```", README, re.DOTALL | re.MULTILINE)
    with router_process(tmp_path) as router, edge_process(router.address) as edge:
        program = command.replace("127.0.0.1:8080", edge.address)
        done = subprocess.run(
            ["sh", "-c", f"{program} -sS"], capture_output=True, text=True, timeout=patient(20), check=False
        )
    assert done.stderr == ""
    assert json.loads(done.stdout)["position"]["seq"] == "1"


async def test_the_worker_example_answers(tmp_path: Path) -> None:
    with router_process(tmp_path) as router, edge_process(router.address) as edge:
        command = [sys.executable, "-c", WORKER.replace("127.0.0.1:50051", router.address)]
        # The worker prints nothing; messages sent before it attaches wait for it.
        with Process(command, {}, "the worker", tmp_path):
            async with (
                Client(
                    f"ws://{edge.address}",
                    tenant="demo",
                    agent="poet",
                    platform="web",
                    conversation="person:ann",
                ) as client,
                client.ask("two words") as reply,
            ):
                assert text_of(await reply.wait_until_ended()) == "two… words… "


def test_every_link_leads_to_a_file() -> None:
    for page in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), ROOT / "CONTRIBUTING.md"):
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"
