"""After each test: no process of any fleet has written a traceback."""

from __future__ import annotations

from typing import TYPE_CHECKING

import fleet
import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(autouse=True)
def _no_tracebacks() -> Iterator[None]:
    yield
    for each in fleet.running:
        each.assert_quiet()
