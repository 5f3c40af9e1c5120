"""Scripts for Node find the installed packages."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING

import pytest

from tests.support import node
from tests.support.node import node_command

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.io


def test_script_anywhere_imports_an_installed_package(tmp_path: Path) -> None:
    script = tmp_path / "script.mts"
    script.write_text(
        'import { DefaultChatTransport } from "ai";\nconsole.log(typeof (DefaultChatTransport as unknown));\n'
    )
    ran = subprocess.run([*node_command("ai"), str(script)], capture_output=True, text=True, check=False)
    assert (ran.stdout, ran.returncode) == ("function\n", 0), ran.stderr


def test_missing_package_skips_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(node, "INSTALLED", tmp_path)
    with pytest.raises(pytest.skip.Exception, match="the npm package ai is not installed"):
        node.package_folder("ai")
