"""The example in docs/dialects/ai_sdk.md works, and its routes are those of the dialect."""

from __future__ import annotations

import re
import subprocess
from typing import TYPE_CHECKING

from trunkline_edge.dialects.ai_sdk.ui_chat import BASE, PAGE_MESSAGES, make
from trunkline_edge.settings import EdgeSettings

from tests.support.node import node_command
from tests.support.patience import patient
from tests.support.processes import ROOT, edge_process, router_process, worker_process

if TYPE_CHECKING:
    from datetime import datetime
    from pathlib import Path

PAGE = (ROOT / "docs" / "dialects" / "ai_sdk.md").read_text()
BLOCKS = dict(re.findall(r"```(\w+(?: \w+)?)\n(.*?)```", PAGE, re.DOTALL))


def test_the_first_60_seconds(tmp_path: Path) -> None:
    node = node_command("ai", "@ai-sdk/react")
    with (
        router_process(tmp_path / "data") as router,
        edge_process(router.address) as edge,
        worker_process(router.address),
    ):
        script = tmp_path / "chat.mjs"
        script.write_text(BLOCKS["js chat"].replace("127.0.0.1:8080", edge.address))
        command = [*node, str(script)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=patient(30), check=False)
    assert (done.stderr, done.stdout) == ("", "You said: hello there\nuser assistant\n")
    assert "prints `You said: hello there` and `user assistant`" in PAGE


def _never() -> datetime:
    raise AssertionError


def test_every_route_is_listed() -> None:
    listed = set(re.findall(r"^\| `(GET|POST) <base>([^` ]*)`", PAGE, re.MULTILINE))
    served = {
        (route.method, route.path.text.removeprefix(BASE).replace("{chat}", "<id>"))
        for route in make(_never).exchanges
    }
    assert listed == served
    assert f"up to {PAGE_MESSAGES} of" in PAGE
    for name in re.findall(r"TRUNKLINE_(\w+)", PAGE):
        assert name.lower() in EdgeSettings.model_fields
