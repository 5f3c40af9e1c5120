"""Fixtures: a log of each engine."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from trunkline_router.log.interface import Log

from tests.router.log.engines import ENGINES, NOW_MS, Opener, clock
from tests.router.log.memory_engine import MemoryEngine


@pytest.fixture(params=ENGINES)
def opener(request: pytest.FixtureRequest, tmp_path: Path) -> Opener:
    return ENGINES[request.param](tmp_path)


@pytest.fixture
async def log(opener: Opener) -> AsyncIterator[Log]:
    log = await opener()
    yield log
    await log.close()


@pytest.fixture(params=[*ENGINES, "memory"])
async def any_log(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Any]:
    """A log of each engine, and the in-memory double."""
    log = MemoryEngine() if request.param == "memory" else await ENGINES[request.param](tmp_path)()
    yield log
    await log.close()


@pytest.fixture(autouse=True)
def _time() -> Iterator[None]:
    clock.now_ms = NOW_MS
    yield
    clock.now_ms = NOW_MS
