"""Copies of logs between engines: nothing is lost, whatever interrupts them."""

from __future__ import annotations

from pathlib import Path

import pytest
from trunkline_router.log.engines import migrate
from trunkline_router.log.migration.copier import CopyReport

from tests.router.log.migration.random_logs import RandomLog


async def copy(source: object, target: object, tenants: list[str] | None = None) -> CopyReport:
    return await migrate(str(source), str(target), tenants, data_dir=Path("none"), progress=lambda *_: None)


@pytest.mark.parametrize("seed", range(8))
async def test_a_log_is_the_same_after_a_copy_to_postgres_and_back(
    tmp_path: Path, postgres_schema: str, seed: int
) -> None:
    first, second = tmp_path / "first.db", tmp_path / "second.db"
    RandomLog(seed).write(first)
    there = await copy(first, postgres_schema)
    back = await copy(postgres_schema, second)
    assert there.tables == back.tables
    again = await copy(second, tmp_path / "third.db")
    assert again.tables == back.tables
