"""The example and the settings in docs/dialects/langbot.md work."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from typing import TYPE_CHECKING
from urllib.request import urlopen

import pytest
from trunkline_edge.settings import EdgeSettings
from trunkline_router.settings import RouterSettings
from trunkline_router.tenants_file import load

from tests.docs.page_bot import page_bot
from tests.support.patience import patient
from tests.support.processes import ROOT

if TYPE_CHECKING:
    from pathlib import Path

PAGE = (ROOT / "docs" / "dialects" / "langbot.md").read_text()
BLOCKS = dict(re.findall(r"```(\w+(?: \w+)?)\n(.*?)```", PAGE, re.DOTALL))


def test_the_first_60_seconds(tmp_path: Path) -> None:
    with page_bot(tmp_path, BLOCKS["toml"], BLOCKS["python bot"]) as edge:
        client = BLOCKS["python client"].replace("127.0.0.1:8080", edge.address)
        command = [sys.executable, "-c", client]
        done = subprocess.run(command, capture_output=True, text=True, timeout=patient(30), check=False)
        assert done.stderr == ""
        first, second, *replies = done.stdout.splitlines()
        assert (first, second) == ("connected ", "user_message hello there")
        assert replies[-1] == "response hello! there! "
        assert all(replies[-1].startswith(reply) for reply in replies)
        curl, url = shlex.split(BLOCKS["sh"].replace("127.0.0.1:8080", edge.address))
        assert curl == "curl"
        with urlopen(url, timeout=patient(10)) as answer:
            body = json.load(answer)
    contents = [record["content"] for record in body["data"]["messages"]]
    assert contents == ["hello there", "hello! there! "]


def test_every_setting_that_the_page_names_is_there() -> None:
    names = set(re.findall(r"`TRUNKLINE_(\w+?)(?:=[^`]*)?`", PAGE)) - {"TENANTS"}
    assert names
    known = {*EdgeSettings.model_fields, *RouterSettings.model_fields}
    assert {name.lower() for name in names} <= known


@pytest.mark.parametrize("name", ["toml tokens", "toml embed"])
def test_the_declarations_are_valid(name: str, tmp_path: Path) -> None:
    path = tmp_path / "tenants.toml"
    path.write_text(BLOCKS[name])
    assert list(load(path)) == ["acme"]
