"""A router in this process for each test."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.router.rpc.in_process_router import InProcessRouter, in_process_router


@pytest.fixture
async def router(tmp_path: Path) -> AsyncIterator[InProcessRouter]:
    async with in_process_router(tmp_path) as router:
        yield router
