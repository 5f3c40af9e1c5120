"""The example in docs/dialects/openai.md works, and the tables state what is so."""

from __future__ import annotations

import re
import subprocess
import sys
from typing import TYPE_CHECKING

from trunkline_edge.dialects.openai.callers import (
    CONVERSATION,
    MAX_NAME_CHARACTERS,
    OPEN_WEBUI_CHAT,
    RETRY_WINDOW,
)
from trunkline_edge.dialects.openai.completion_routes import BASE, make
from trunkline_router.settings import RouterSettings

from tests.docs.page_bot import page_bot
from tests.support.patience import patient
from tests.support.processes import ROOT

if TYPE_CHECKING:
    from pathlib import Path

PAGE = (ROOT / "docs" / "dialects" / "openai.md").read_text()
BLOCKS = dict(re.findall(r"```(\w+(?: \w+)?)\n(.*?)```", PAGE, re.DOTALL))


def test_the_first_60_seconds(tmp_path: Path) -> None:
    with page_bot(tmp_path, BLOCKS["toml"], BLOCKS["python bot"]) as edge:
        caller = BLOCKS["python caller"].replace("127.0.0.1:8080", edge.address)
        command = [sys.executable, "-c", caller]
        done = subprocess.run(command, capture_output=True, text=True, timeout=patient(60), check=False)
    assert done.stderr == ""
    assert done.stdout == "['guide']\nhello! there! 4\n"
    assert "prints `['guide']`, then `hello! there! 4`." in PAGE


def test_the_routes_are_those_of_the_dialect() -> None:
    named = re.findall(r"`(GET|POST) (/[^`]+)`", PAGE)
    served = {(route.method, route.path.text.removeprefix(BASE)) for route in make(lambda: None).exchanges}  # type: ignore[arg-type,return-value]
    assert {(method, re.sub(r"<(\w+)>", r"{\1}", path)) for method, path in named} == {
        (method, path.replace("{completion}", "{id}")) for method, path in served
    }


def test_the_numbers_and_names_are_true() -> None:
    assert f"at most {MAX_NAME_CHARACTERS} letters" in PAGE
    assert f"within {RETRY_WINDOW.seconds // 60} minutes" in PAGE
    assert all(f"`{name}`" in PAGE.lower() for name in (CONVERSATION, OPEN_WEBUI_CHAT))
    assert "tenants_file" in RouterSettings.model_fields
