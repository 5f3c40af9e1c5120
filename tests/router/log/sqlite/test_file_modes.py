"""Modes of the SQLite engine's files, new and old."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from structlog.testing import capture_logs
from trunkline_router.settings import RouterSettings

from tests.router.log.engines import append, pending_entry
from tests.support.router_log import open_log

FILES = {"trunkline.db", "trunkline.db-wal", "trunkline.db-shm", "trunkline.db.lock", "trunkline.db.mark"}


def modes(folder: Path) -> dict[str, int]:
    return {path.name: stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()}


async def test_all_files_are_their_owners_alone_without_a_umask(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    before = os.umask(0)
    try:
        log = await open_log(RouterSettings(data_dir=folder))
        await append(log, pending_entry())
    finally:
        os.umask(before)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert modes(folder) == dict.fromkeys(FILES, 0o600)
    await log.close()


def copy_aside(folder: Path) -> None:
    """Copy the files of an open log, as a crash would leave them."""
    for path in list(folder.iterdir()):
        path.with_name(f"{path.name}.copy").write_bytes(path.read_bytes())


def restore_widely(folder: Path) -> None:
    """Put the copies in place, readable by everyone, beside a file that is not the router's."""
    for path in list(folder.glob("*.copy")):
        path.replace(path.with_name(path.name.removesuffix(".copy")))
    (folder / "tenants.toml").touch()
    for path in (folder, *folder.iterdir()):
        path.chmod(0o755 if path.is_dir() else 0o644)


async def test_files_of_an_earlier_version_are_narrowed_and_logged_once(tmp_path: Path) -> None:
    settings = RouterSettings(data_dir=tmp_path)
    log = await open_log(settings)
    await append(log, pending_entry())
    copy_aside(tmp_path)
    await log.close()
    restore_widely(tmp_path)
    for narrowed in ({tmp_path.name, *FILES}, set()):
        with capture_logs() as lines:
            log = await open_log(settings)
        assert {Path(name).name for line in lines for name in line["modes"]} == narrowed
        found = modes(tmp_path)
        assert found.pop("tenants.toml") == 0o644
        assert found == dict.fromkeys(FILES, 0o600)
        await log.close()
