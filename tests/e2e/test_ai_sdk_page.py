"""The example page of the AI SDK dialect in Chromium: useChat under StrictMode, reloaded in the middle."""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
from typing import TYPE_CHECKING, Any

import pytest

from tests.e2e.fleet import Fleet, fleet_of
from tests.e2e.polling import wait_until
from tests.e2e.streaming_worker import StreamingWorker
from tests.support.node import chromium, node_command, package_folder
from tests.support.patience import patient
from tests.support.processes import ROOT, Process
from tests.support.static_site import static_site

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path
    from typing import Self

EXAMPLE = ROOT / "examples" / "ai_sdk_chat"
DRIVER = ROOT / "tests" / "node" / "browser.mjs"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Bundle the example and serve it; yield its address."""
    folder = tmp_path_factory.mktemp("site")
    bundle(folder)
    with static_site(folder) as origin:
        yield origin


def bundle(folder: Path) -> None:
    for package in ("ai", "@ai-sdk/react", "react", "react-dom", "playwright-core"):
        package_folder(package)
    esbuild = package_folder("esbuild") / "bin" / "esbuild"
    shutil.copy(EXAMPLE / "index.html", folder)
    subprocess.run(
        [esbuild, EXAMPLE / "chat.jsx", "--bundle", "--jsx=automatic", f"--outfile={folder / 'chat.js'}"],
        env={"NODE_PATH": str(package_folder("ai").parent)},
        check=True,
        capture_output=True,
    )


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory, site: str) -> Iterator[Fleet]:
    with fleet_of(tmp_path_factory.mktemp("ai_sdk_page"), 1, TRUNKLINE_REPLY_LEASE_S="60") as fleet:
        yield fleet


@pytest.fixture
async def worker(fleet: Fleet) -> AsyncIterator[StreamingWorker]:
    async with asyncio.timeout(patient(60)), StreamingWorker(fleet.router.address) as worker:
        yield worker


class Page:
    """A browser with the page, which takes steps."""

    def __init__(self, site: str, edge: Process, *steps: str) -> None:
        url = f"{site}/?api=http://{edge.address}/ai/demo/echo/chat"
        browser = chromium()
        env = {**browser.env, "PATIENCE_MS": str(int(patient(10) * 1000))}
        node = node_command("playwright-core")
        self._process = Process([*node, str(DRIVER), browser.program, url, *steps], env, "browser", ROOT)

    async def after(self, step: str) -> Any:
        """Wait until a step is done; return what the page displays."""
        line = await asyncio.to_thread(
            self._process.line, lambda line: json.loads(line)["step"] == step, patient(12)
        )
        state = json.loads(line)
        assert state["problems"] == []
        return state

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._process.close()


async def test_page_reloads_in_the_middle_and_regenerates(
    site: str, edge: Process, worker: StreamingWorker, tmp_path: Path
) -> None:
    steps = ["type:hello", "answer:one two ", "reload", "answer:one two ", "answer:one two three"]
    steps += ["status:ready", f"screenshot:{tmp_path / 'page.png'}", "click:regenerate", "answer:four"]
    with Page(site, edge, *steps, "status:ready") as page:
        delivery, number = await worker.begin("hello", "one ", "two ")
        await page.after("answer:one two ")
        await page.after("reload")
        await page.after("answer:one two ")
        await worker.add(number, 2, "three")
        await worker.end(number, 3)
        await worker.settle(delivery.delivery_id)
        state = await page.after("status:ready")
        assert state["paragraphs"] == [["user", "hello"], ["assistant", "one two three"]]
        await wait_until(lambda: len(worker.deliveries) == 2, "the message is delivered again")
        delivery = worker.deliveries[1]
        number, _ = await worker.open("again", delivery_id=delivery.delivery_id)
        await worker.add(number, 0, "four")
        await worker.end(number, 1)
        await worker.settle(delivery.delivery_id)
        state = await page.after("status:ready")
        assert state["paragraphs"] == [["user", "hello"], ["assistant", "four"]]


async def test_page_stops_a_reply(site: str, edge: Process, worker: StreamingWorker) -> None:
    with Page(site, edge, "type:stop", "answer:one ", "click:stop", "status:ready", "reload") as page:
        await worker.begin("stop", "one ")
        state = await page.after("status:ready")
        assert state["paragraphs"] == [["user", "stop"], ["assistant", "one "]]
        await page.after("reload")


async def test_page_outlives_router_and_edge(site: str, fleet: Fleet, worker: StreamingWorker) -> None:
    edge = await asyncio.to_thread(fleet.start_edge)
    steps = ["type:outlive", "answer:one ", "answer:one two ", "status:error"]
    steps += [f"reachable:http://{edge.address}/readyz", "reload", "answer:one two "]
    with Page(site, edge, *steps, "answer:one two three", "status:ready") as page:
        delivery, number = await worker.begin("outlive", "one ")
        await worker.wait_durable(number, 1)
        await page.after("answer:one ")
        await fleet.restart_router()
        await worker.attach()
        again = await worker.wait_for_delivery("outlive")
        number, opened = await worker.open(f"key-{delivery.delivery_id}", delivery_id=again.delivery_id)
        assert not opened.error.code, opened
        await worker.add(number, 1, "two ")
        await page.after("answer:one two ")
        listen = {"TRUNKLINE_EDGE_LISTEN": edge.address}
        await asyncio.to_thread(edge.kill)
        await page.after("status:error")
        await asyncio.to_thread(lambda: fleet.start_edge(**listen))
        await page.after("answer:one two ")
        await worker.add(number, 2, "three")
        await worker.end(number, 3)
        state = await page.after("status:ready")
    assert state["paragraphs"] == [["user", "outlive"], ["assistant", "one two three"]]
