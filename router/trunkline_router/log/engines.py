"""Opens the log with the engine that the settings select: the only module that imports an engine."""

from __future__ import annotations

import os
import re
import socket
from contextlib import aclosing
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import structlog
from trunkline_runtime.process import StartError

from trunkline_router.log.backup_manifest import BackupManifest
from trunkline_router.log.data_key_settings import data_keys_of_environment, load_data_keys, reload_data_keys
from trunkline_router.log.data_keys import DataKeyError
from trunkline_router.log.interface import BackupFailed
from trunkline_router.log.migration.copied_log import CopiedLog, CopyFailed
from trunkline_router.log.migration.copier import Copier, CopyReport, Progress
from trunkline_router.log.ownership import LogDatabase
from trunkline_router.log.postgres.installation_file import INSTALLATION_FILE
from trunkline_router.log.sqlite import backup
from trunkline_router.log.sqlite import restore as restoration
from trunkline_router.log.sqlite.copied_file import CopiedFile
from trunkline_router.log.sqlite.database import SqliteDatabase

if TYPE_CHECKING:
    # The commands need the data folder only, and are quick without the settings.
    from trunkline_router.log.postgres.database import PostgresDatabase
    from trunkline_router.settings import RouterSettings

#: Name of the database in the data folder.
SQLITE_FILE = "trunkline.db"
DATABASE_URL = "TRUNKLINE_DATABASE_URL"

_log = structlog.get_logger()


def open_database(settings: RouterSettings) -> LogDatabase:
    """Open the storage that the settings select. Raises StartError.

    An engine joins here with one line.
    """
    try:
        data_keys = load_data_keys(settings)
    except DataKeyError as error:
        raise StartError(str(error)) from None
    if url := settings.database_url.get_secret_value():
        address = f"{socket.gethostname()} ({settings.router_listen})"
        return _postgres_database()(
            url,
            data_keys=lambda: reload_data_keys(settings, data_keys),
            lease_s=settings.ownership_lease_s,
            address=address,
            data_dir=settings.data_dir,
        )
    if (settings.data_dir / INSTALLATION_FILE).exists():
        _log.warning(
            "the log of this data folder was in PostgreSQL, and TRUNKLINE_DATABASE_URL is not set",
            log=str(settings.data_dir / SQLITE_FILE),
            silence=f"delete {settings.data_dir / INSTALLATION_FILE}",
        )
    return SqliteDatabase(settings.data_dir / SQLITE_FILE, data_keys)


async def migrate(
    source: str,
    target: str,
    tenants: list[str] | None,
    *,
    data_dir: Path,
    progress: Progress,
) -> CopyReport:
    """Copy a log, or tenants of it, to another database; no router may run on either. Raises CopyFailed.

    `sqlite` is the log of the data folder, `postgresql` that of TRUNKLINE_DATABASE_URL; others are a URL, a
    data folder, or the database in it.
    """
    async with (
        aclosing(await _open_copied(source, data_dir)) as copied,
        aclosing(await _open_copied(target, data_dir, is_target=True, may_create=True)) as copy,
    ):
        try:
            return await Copier(copied, copy, data_keys_of_environment(), progress).copy(tenants)
        except DataKeyError as error:
            raise CopyFailed(str(error)) from None


async def discard_copy(target: str, *, data_dir: Path) -> bool:
    """Delete what an unfinished copy left. Returns whether there was one. Raises CopyFailed."""
    async with aclosing(await _open_copied(target, data_dir, is_target=True)) as copy:
        return await Copier(copy, copy, None, lambda done, expected: None).discard()


async def _open_copied(
    place: str, data_dir: Path, *, is_target: bool = False, may_create: bool = False
) -> CopiedLog:
    if place == "postgresql":
        place = os.environ.get(DATABASE_URL, "")
        if not place:
            raise CopyFailed(f"{DATABASE_URL} is not set")
    if place.startswith(("postgresql://", "postgres://")):
        copied: CopiedLog = await _postgres().open_copied(place, is_target=is_target, may_create=may_create)
        return copied
    if re.match(r"\w{2,}:", place):
        raise CopyFailed(f"{place} is not postgresql://user@host/database, and no path")
    path = data_dir if place == "sqlite" else Path(place)
    if path.is_dir() or (may_create and not path.exists() and path.suffix != ".db"):
        path /= SQLITE_FILE
    if is_target:
        return CopiedFile.open_target(path, may_create=may_create)
    return CopiedFile.open_source(path)


def back_up(data_dir: Path, target: Path, *, force: bool, progress: backup.Progress) -> BackupManifest:
    """Back up the log of a data folder, whether a router runs or not. Raises BackupFailed."""
    _refuse_database("back it up with PostgreSQL's own tools, such as pg_basebackup or pg_dump")
    return backup.back_up(data_dir / SQLITE_FILE, target, force=force, progress=progress)


def check(path: Path) -> list[str]:
    """Verify the log of a data folder, or a backup. Returns its problems. Raises BackupFailed."""
    return backup.check_file(path / SQLITE_FILE if path.is_dir() else path)


async def check_database() -> list[str]:
    """Verify the log in the database of TRUNKLINE_DATABASE_URL. Returns its problems. Raises BackupFailed."""
    try:
        problems: list[str] = await _postgres().check_log(os.environ[DATABASE_URL])
    except CopyFailed as error:
        raise BackupFailed(str(error)) from None
    return problems


async def fork_restored_database() -> int:
    """Begin a new epoch of every log of TRUNKLINE_DATABASE_URL, which was restored. Raises BackupFailed.

    Returns their number. No router may run.
    """
    if not uses_database():
        raise BackupFailed(f"{DATABASE_URL} is not set; `restore` does this for a file")
    try:
        logs: int = await _postgres().fork_restored_log(os.environ[DATABASE_URL])
    except CopyFailed as error:
        raise BackupFailed(str(error)) from None
    return logs


def uses_database() -> bool:
    """Return whether the log is in PostgreSQL, for commands, which know the environment only."""
    return bool(os.environ.get(DATABASE_URL))


def restore(
    data_dir: Path, file: Path, audit: Path | None, *, progress: backup.Progress
) -> restoration.RestoreReport:
    """Replace the log of a data folder by a backup; no router may run. Raises BackupFailed."""
    _refuse_database("restore it with PostgreSQL's own tools, then run `trunkline-router restored`")
    try:
        data_keys = data_keys_of_environment()
    except DataKeyError as error:
        raise BackupFailed(str(error)) from None
    return restoration.restore(data_dir / SQLITE_FILE, file, audit, progress=progress, data_keys=data_keys)


def _refuse_database(advice: str) -> None:
    """Raise BackupFailed if the log is in PostgreSQL: a data folder then holds another log, or none."""
    if uses_database():
        raise BackupFailed(f"{DATABASE_URL} is set, so the log is in PostgreSQL: {advice}")


def _postgres_database() -> type[PostgresDatabase]:
    """Import the engine, which only those who use it must have installed. Raises StartError."""
    try:
        from trunkline_router.log.postgres.database import PostgresDatabase
    except ModuleNotFoundError as error:
        raise StartError(_missing_package(error)) from None
    return PostgresDatabase


def _postgres() -> ModuleType:
    """Import what copies and checks logs in PostgreSQL. Raises CopyFailed."""
    try:
        from trunkline_router.log.postgres import copied_database
    except ModuleNotFoundError as error:
        raise CopyFailed(_missing_package(error)) from None
    return copied_database


def _missing_package(error: ModuleNotFoundError) -> str:
    """Return the problem and its remedy. Raises an error that is about another module."""
    if error.name != "asyncpg":
        raise error
    return 'PostgreSQL needs a package: pip install "trunkline[postgres]"'
