"""What README.md shows is what happens."""

from __future__ import annotations

import re
import subprocess
import sys
from typing import TYPE_CHECKING

from processes import ROOT, router_process

if TYPE_CHECKING:
    from pathlib import Path

README = (ROOT / "README.md").read_text()


def test_the_backend_example_runs(tmp_path: Path) -> None:
    (program,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    with router_process(tmp_path) as router:
        program = program.replace("127.0.0.1:50051", router.address)
        done = subprocess.run(
            [sys.executable, "-c", program], capture_output=True, text=True, timeout=20, check=False
        )
    assert done.stderr == ""
    assert re.fullmatch(r"\w{13}-1 reached 0 connections\n", done.stdout)


def test_every_link_leads_to_a_file() -> None:
    for page in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), ROOT / "CONTRIBUTING.md"):
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"
