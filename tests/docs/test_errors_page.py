"""docs/errors.md matches the catalogue."""

from __future__ import annotations

import runpy
from pathlib import Path

from trunkline.v1 import catalogue

DOCS = Path(__file__).parents[2] / "docs"
GENERATOR = runpy.run_path(str(DOCS / "generate_errors.py"))


def test_the_page_is_up_to_date() -> None:
    page = GENERATOR["PAGE"].read_text("utf-8")
    assert page == GENERATOR["page"](), "run python docs/generate_errors.py"


def test_every_close_code_lies_in_a_range() -> None:
    ranges = GENERATOR["RANGES"]
    for entry in catalogue.ENTRIES.values():
        if entry.close_code:
            assert any(first <= entry.close_code <= last for first, last, _ in ranges), entry.code
