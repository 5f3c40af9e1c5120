"""Runs the files with the longest tests first, so that no worker ends with one while the others idle."""

from __future__ import annotations

import pytest


class LongTests:
    """Sorts test files; see the marker `long`."""

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """Move files that contain a long test to the front; the order is otherwise kept."""
        files = {item.path for item in items if item.get_closest_marker("long")}
        items.sort(key=lambda item: item.path not in files)
