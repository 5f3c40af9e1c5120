"""LangBot's own web client in Chromium, against an edge: its token, its chats, its uploads."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

import pytest

from tests.e2e.langbot_client import EdgeFleet, echo_handler, edges_of, pipeline_worker
from tests.e2e.langbot_tokens import AUDIENCE, SECRET, WORKSPACE, token
from tests.e2e.test_langbot_uploads import png
from tests.support.langbot import langbot_file
from tests.support.node import chromium, node_command
from tests.support.patience import patient
from tests.support.processes import ROOT, Process

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

SCRIPT = ROOT / "tests" / "node" / "langbot_web.mjs"
TENANTS = f"""
[tenants.acme]
open_to = "loopback"
pipelines = ["open"]
[tenants.dash]
pipelines = ["p1"]
audiences = ["{AUDIENCE}"]
[[tenants.dash.keys]]
kid = "langbot"
algorithm = "HS256"
secret = "{SECRET}"
"""


@pytest.fixture(scope="module")
def edges(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EdgeFleet]:
    node_command("playwright-core")
    chromium()
    langbot_file("web/dist")
    with edges_of(tmp_path_factory.mktemp("langbot-web"), TENANTS) as started:
        yield started


@pytest.mark.parametrize(
    ("tenant", "pipeline", "value"),
    [("dash", "p1", ""), ("acme", "open", "of.another.system")],
    ids=["declared key", "open tenant"],
)
async def test_person_and_group_chat_with_images(
    edges: EdgeFleet, tenant: str, pipeline: str, value: str, tmp_path: Path
) -> None:
    browser = chromium()
    image, screenshot, bearer = tmp_path / "a.png", tmp_path / "page.png", value or token()
    image.write_bytes(png())
    edge = f"http://{edges.plain.address}"
    arguments = [
        browser.program,
        edge,
        str(langbot_file("web/dist")),
        pipeline,
        WORKSPACE,
        bearer,
        str(image),
    ]
    command = [*node_command("playwright-core"), str(SCRIPT), *arguments, str(screenshot)]
    env = {**browser.env, "PATIENCE_MS": str(int(patient(15) * 1000))}
    key = edges.fleet.operator_key
    async with pipeline_worker(edges.router, [pipeline], echo_handler, tenant=tenant, api_key=key):
        process = Process(command, env, "browser", ROOT)
        try:
            steps = [await after(process, step) for step in ("person", "group", "done")]
        finally:
            process.close()
    person, group, done = steps
    assert person["images"][0] == group["images"][0] == "data:image/png;base64,"
    called = {(method, path.rpartition("/ws/")[2] or path) for method, path, _ in done["responses"]}
    assert {("GET", "messages/person"), ("GET", "messages/group")} <= called
    assert {status for _, _, status in done["responses"]} == {200}
    # Nobody was logged out.
    assert (done["token"], "/login" in done["url"]) == (bearer, False)


async def after(process: Process, step: str) -> Any:
    line = await asyncio.to_thread(
        process.line, lambda line: json.loads(line).get("step") == step, patient(40)
    )
    return json.loads(line)
