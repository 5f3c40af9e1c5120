"""A guarded router for each test."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.router.rpc.guarded_router import GuardedRouter, guarded_router


@pytest.fixture
async def router(tmp_path: Path) -> AsyncIterator[GuardedRouter]:
    async with guarded_router(tmp_path) as router:
        yield router
