"""The examples in docs/dialects/maim.md work as documented."""

from __future__ import annotations

import ast
import asyncio
import json
import re
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
from trunkline_client import Backend

from tests.e2e.maim_client import MaimClient
from tests.support.patience import patient
from tests.support.processes import ROOT, Process, edge_process, router_process, worker_process

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

PAGE = (ROOT / "docs" / "dialects" / "maim.md").read_text()


def blocks(language: str) -> list[str]:
    """Return the page's code blocks in a language."""
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Process]]:
    """Address of a router, and an edge with the page's tenants."""
    data = tmp_path_factory.mktemp("page")
    tenants = data / "tenants.toml"
    tenants.write_text(blocks("toml")[0])
    with (
        router_process(data, TRUNKLINE_TENANTS="", TRUNKLINE_TENANTS_FILE=str(tenants)) as router,
        edge_process(router.address) as edge,
        worker_process(router.address),
    ):
        yield router.address, edge


def test_the_client_and_the_broadcast_work_as_documented(
    started: tuple[str, Process], tmp_path: Path
) -> None:
    _, edge = started
    program = tmp_path / "program.py"
    program.write_text(blocks("python")[0].replace("127.0.0.1:8080", edge.address))
    with Process([sys.executable, str(program)], {}, "the page's client", ROOT) as client:
        # In either order: the client polls for the result every 0.1 s.
        printed = [ast.literal_eval(client.line()) for _ in range(2)]
        result, reply = sorted(printed, key=lambda frame: "type" in frame)
        assert result["success"] is True
        assert reply["data"]["response"] == "You said: hello"
        command = blocks("sh")[0].replace("127.0.0.1:8080", edge.address)
        command = command.replace("curl", "curl -sS -q --noproxy '*'")
        run = subprocess.run(
            ["sh", "-c", command], capture_output=True, text=True, timeout=patient(20), check=True
        )
        answer = json.loads(run.stdout)
        notice = ast.literal_eval(client.line())
    assert (notice["text"], notice["message_id"]) == ("from a backend", answer["message_id"])
    answer["message_id"] = "…@demo"
    assert answer == json.loads(blocks("json")[0])


async def test_both_documented_ways_of_broadcasting_reach_the_client(started: tuple[str, Process]) -> None:
    router, edge = started
    defined: dict[str, Any] = {}
    for block in blocks("python after"):
        exec(block.replace("127.0.0.1:8080", edge.address), defined)
    place = ("demo", "agent_1", "test")
    nobody = await defined["broadcast_to_agent_platform"](*place, {"type": "message"})
    assert nobody == {"success": False, "error": "No active connections for agent agent_1 on platform test"}
    failed = await defined["broadcast_to_agent_platform"]("nobody", "agent_1", "test", {})
    assert failed == {"success": False, "error": 'HTTP 404: {"detail":"Tenant nobody does not exist"}'}
    async with Backend(router) as trunkline, MaimClient(edge, "demo/agent_1/test") as adapter:
        result = await defined["broadcast_to_agent_platform"](*place, {"type": "message", "text": "by HTTP"})
        assert result["success_count"] == 1
        assert await defined["say"](trunkline, *place, "by gRPC") == 1
        assert (await adapter.next("message"))["text"] == "by HTTP"
        assert (await adapter.next("chat_response"))["data"]["response"] == "by gRPC"
    # aiohttp closes its connections in the next iteration of the event loop.
    await asyncio.sleep(0)
