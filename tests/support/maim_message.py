"""Versions of maim_message beside the installed one; `make test` puts each into a folder of its own."""

from __future__ import annotations

import pytest

from tests.support.processes import ROOT

_INSTALLED = ROOT / "build" / "maim"


def environment_of(version: str) -> dict[str, str]:
    """Return the environment in which Python imports this version; skip the test if it is missing."""
    folder = _INSTALLED / version
    if not (folder / "maim_message").exists():
        pytest.skip(f"maim_message {version} is not installed: make {folder.relative_to(ROOT)}")
    return {"PYTHONPATH": str(folder)}
