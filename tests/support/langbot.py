"""The files of LangBot that tests run; `make test` puts its wheel into a folder."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.support.processes import ROOT

if TYPE_CHECKING:
    from pathlib import Path

VERSION = "4.10.8"
_INSTALLED = ROOT / "build" / "langbot" / VERSION / "langbot"


def langbot_file(path: str) -> Path:
    """Return a file of the installed version; skip the test if it is missing."""
    if not _INSTALLED.exists():
        pytest.skip(f"LangBot {VERSION} is not installed: make {_INSTALLED.parent.relative_to(ROOT)}")
    return _INSTALLED / path
