"""A log of each engine."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from log_engines import ENGINES, Opener

from router.log.port import Log


@pytest.fixture(params=ENGINES)
def opener(request: pytest.FixtureRequest, tmp_path: Path) -> Opener:
    return ENGINES[request.param](tmp_path)


@pytest.fixture
async def log(opener: Opener) -> AsyncIterator[Log]:
    log = await opener()
    yield log
    await log.close()
