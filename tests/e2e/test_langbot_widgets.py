"""The chat widget in Chromium, on a page of another origin: our own, and LangBot's."""

from __future__ import annotations

import asyncio
import json
from functools import partial
from typing import TYPE_CHECKING

import pytest

from tests.e2e.langbot_client import EdgeFleet, echo_handler, edges_of, pipeline_worker
from tests.e2e.test_langbot_uploads import png
from tests.support.langbot import langbot_file
from tests.support.node import chromium, node_command
from tests.support.patience import patient
from tests.support.processes import ROOT, Process
from tests.support.static_site import static_site

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

BOT = "1f0a7c52-93a6-4f0f-8f8e-2d5f6c1b7a90"
SCRIPT = ROOT / "tests" / "node" / "langbot_widget.mjs"
PAGE = '<!doctype html><title>Shop</title><h1>A shop</h1><script src="{source}" data-title="Help"></script>'


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, str]]:
    """Folder of pages, and the origin that serves it."""
    folder = tmp_path_factory.mktemp("site")
    with static_site(folder) as origin:
        yield folder, origin


@pytest.fixture(scope="module")
def edges(tmp_path_factory: pytest.TempPathFactory, site: tuple[Path, str]) -> Iterator[EdgeFleet]:
    node_command("playwright-core")
    chromium()
    tenants = f'[tenants.acme]\nweb_page_bots = ["{BOT}"]\norigins = ["{site[1]}"]\n'
    with edges_of(tmp_path_factory.mktemp("widget"), tenants) as started:
        yield started


def own_source(edge: str, folder: Path) -> str:
    return f"{edge}/api/v1/embed/{BOT}/widget.js"


def stock_source(edge: str, folder: Path) -> str:
    """Fill in LangBot's template as its server does."""
    script = langbot_file("templates/embed/widget.js").read_text("utf-8")
    values = {
        "TURNSTILE_SITE_KEY": "",
        "BOT_UUID": BOT,
        "BASE_URL": edge,
        "LOCALE": "en_US",
        "BUBBLE_ICON": "logo",
    }
    for name, value in values.items():
        script = script.replace(f"__LANGBOT_{name}__", value)
    (folder / "stock.js").write_text(script, "utf-8")
    return "stock.js"


@pytest.mark.parametrize("kind", ["own", "stock"])
async def test_two_visitors_chat(edges: EdgeFleet, site: tuple[Path, str], kind: str, tmp_path: Path) -> None:
    folder, origin = site
    source = {"own": own_source, "stock": stock_source}[kind](f"http://{edges.plain.address}", folder)
    (folder / f"{kind}.html").write_text(PAGE.format(source=source), "utf-8")
    image, screenshot = tmp_path / "a.png", tmp_path / "page.png"
    image.write_bytes(png())
    browser = chromium()
    node = node_command("playwright-core")
    command = [
        *node,
        str(SCRIPT),
        browser.program,
        f"{origin}/{kind}.html",
        kind,
        str(image),
        str(screenshot),
    ]
    env = {**browser.env, "PATIENCE_MS": str(int(patient(10) * 1000))}
    key = edges.fleet.operator_key
    async with pipeline_worker(edges.router, [BOT], echo_handler, tenant="acme", api_key=key):
        process = Process(command, env, "browser", ROOT)
        try:
            states = [
                await asyncio.to_thread(process.line, partial(_is_step, step=step), patient(30))
                for step in ("chatted", "image", "feedback", "reloaded", "reset")
            ]
        finally:
            process.close()
    chatted, pictured, feedback, reloaded, reset = map(json.loads, states)
    hostile = "gamma <img src=x onerror=alert(1)>"
    assert chatted["ann"] == ["alpha beta", "re: alpha beta"]
    assert chatted["bob"][0] == hostile
    assert len(chatted["bob"]) == 2
    assert pictured["images"] >= 1
    assert (feedback["status"], feedback["answer"]["code"]) == (200, 0)
    # LangBot's widget displays the plain text of a record, which names the image.
    picture = "a picture" if kind == "own" else "a picture[Image]"
    odd = ["odd", "re: odd"] if kind == "own" else []
    assert reloaded["ann"] == ["alpha beta", "re: alpha beta", picture, "re: a picture", *odd]
    assert (reset["ann"], reset["bob"]) == ([], chatted["bob"])
    assert reset["problems"] == []
    assert screenshot.stat().st_size > 1000


def _is_step(line: str, step: str) -> bool:
    return bool(json.loads(line)["step"] == step)
