"""The commands, the file and the tables in docs/tenants.md work."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
from joserfc.jwk import OKPKey
from trunkline.v1.broadcast_service_pb2 import BroadcastRequest
from trunkline.v1.broadcast_service_pb2_grpc import BroadcastServiceStub
from trunkline.v1.message_pb2 import Part, TextPart
from trunkline.v1.tenant_limits import TENANT_LIMITS
from trunkline_client import Client, address
from trunkline_router.cli.agent_options import NAMES
from trunkline_router.cli.api_key_commands import ApiKeyScope
from trunkline_router.cli.units import format_bytes
from trunkline_router.settings import RouterSettings
from trunkline_router.tenants_file import load

from tests.support.patience import patient
from tests.support.processes import ROOT, Process, edge_process, environment, router_process

pytestmark = pytest.mark.long

PAGE = (ROOT / "docs" / "tenants.md").read_text()
MAKE, CHANGE, DELETE, KEYS, AGENTS, USERS = re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL)
[FILE] = re.findall(r"```toml\n(.*?)```", PAGE, re.DOTALL)
ALICE = {"tenant": "acme", "agent": "echo", "platform": "web", "conversation": "person:alice"}


class Shell:
    """Runs commands of the page in a folder that contains the router's as `data`."""

    def __init__(self, folder: Path, router: Process) -> None:
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        self._env = environment({"TRUNKLINE_ROUTER": router.address, "PATH": path})
        self._folder = folder

    def __call__(self, program: str) -> str:
        done = subprocess.run(
            ["sh", "-euc", program],
            cwd=self._folder,
            env=self._env,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=patient(30),
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def shown(self, *words: str) -> Any:
        """Return the JSON output of a command."""
        return json.loads(self(" ".join(["trunkline-router tenant", *words, "--json"])))


def say(router: Process, key: str) -> None:
    """Send a message to alice as a backend with this key."""
    request = BroadcastRequest(address=address(**ALICE), parts=[Part(text=TextPart(text="hello"))])
    with grpc.insecure_channel(router.address) as channel:
        stub: Any = BroadcastServiceStub(channel)  # type: ignore[arg-type]
        stub.Broadcast(request, metadata=(("authorization", f"Bearer {key}"),), timeout=patient(5))


async def test_the_commands_do_what_they_say(tmp_path: Path) -> None:
    with (
        router_process(tmp_path / "data", TRUNKLINE_TENANTS="", TRUNKLINE_OPERATOR_KEY="") as router,
        edge_process(router.address) as edge,
    ):
        shell = Shell(tmp_path, router)
        shell(MAKE)
        key, token = ((tmp_path / name).read_text().strip() for name in ("billing.key", "alice.token"))
        async with Client(f"ws://{edge.address}", **ALICE, user="alice", token=token) as alice:
            say(router, key)
            await anext(aiter(alice))
        assert "connections 500" in shell(CHANGE)
        assert "gone is deleted; 0 messages were erased." in shell(DELETE)
        assert [each["tenant"] for each in shell.shown("list")] == ["acme"]
        settings = shell.shown("show", "acme")["settings"]
        assert (settings["origins"], settings["limits"]["connections"]) == ([], 500)
        shell(KEYS)
        with pytest.raises(grpc.RpcError, match="UNAUTHENTICATED"):
            say(router, key)
        assert "max_attempts=5, echo:concurrency=8" in shell(AGENTS)
        assert shell.shown("show", "acme")["settings"]["agentDefaults"]["maxAttempts"] == 5
        assert "alice" in shell(USERS)
        assert shell.shown("erase-user", "acme", "alice", "--yes") == {"messages": "0", "receipts": "0"}


def test_the_file_is_one_that_a_router_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACME_SECRET", "x" * 32)
    (tmp_path / "acme.pem").write_bytes(OKPKey.generate_key("Ed25519").as_pem(private=False))
    (tmp_path / "tenants.toml").write_text(FILE)
    [settings] = load(tmp_path / "tenants.toml").values()
    assert [key.kid for key in settings.client_auth.keys] == ["2026-01", "shared"]


def test_a_changed_file_is_followed_and_one_with_a_mistake_is_not(tmp_path: Path) -> None:
    file = tmp_path / "tenants.toml"
    file.write_text("[tenants.one]\nagent = 'a'")
    env = {"TRUNKLINE_TENANTS": "", "TRUNKLINE_TENANTS_FILE": str(file), "TRUNKLINE_OPERATOR_KEY": ""}
    with router_process(tmp_path / "data", **env) as router:
        shell = Shell(tmp_path, router)
        shell("trunkline-router tenant set one --agent b")
        file.write_text("[tenants.one]\nagent = 3")
        until(lambda: "tenants.one.agent" in router.stderr, shell)
        assert shell.shown("show", "one")["settings"]["defaultAgent"] == "b"
        file.write_text("[tenants.one]\nagent = 'c'\n[tenants.two]")
        until(lambda: len(shell.shown("list")) == 2, shell)
        assert shell.shown("show", "one")["settings"]["defaultAgent"] == "c"
        assert router.stderr.count("tenants.one.agent") == 1


def until(condition: Callable[[], bool], shell: Shell) -> None:
    """Run a slow command until the condition holds, which takes a second or two."""
    deadline = time.monotonic() + patient(20)
    while not condition():
        assert time.monotonic() < deadline
        shell.shown("show", "one")


def test_the_table_of_limits_matches_the_contract() -> None:
    documented = {name: (cells[0], cells[-1]) for name, cells in table("Limits").items()}
    assert documented == {
        limit.name: (
            format_bytes(limit.default) if limit.is_size else str(limit.default),
            limit.exceeded.code,
        )
        for limit in TENANT_LIMITS.values()
    }
    settings = RouterSettings()
    assert (settings.max_conversations, settings.max_open_messages) == (100, 10_000)


def test_the_table_of_agent_settings_matches_the_contract() -> None:
    assert tuple(table("Agents")) == NAMES


def test_the_table_of_scopes_matches_those_of_keys() -> None:
    assert list(table("API keys")) == list(ApiKeyScope)


def table(heading: str) -> dict[str, list[str]]:
    """Return the rows of the table below a heading, by their first cell."""
    section = PAGE.partition(f"## {heading}\n")[2].partition("\n## ")[0]
    lines = [line.strip("|").split("|") for line in section.splitlines() if line.startswith("|")]
    return {first.strip(" `"): [cell.strip() for cell in rest] for first, *rest in lines[2:]}
