"""Opens the log with the engine that the settings select: the only module that imports an engine."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from trunkline_runtime.process import StartError

from trunkline_router.log.backup_manifest import BackupManifest
from trunkline_router.log.data_key_settings import data_keys_of_environment, load_data_keys
from trunkline_router.log.data_keys import DataKeyError
from trunkline_router.log.interface import BackupFailed
from trunkline_router.log.ownership import LogDatabase
from trunkline_router.log.sqlite import backup
from trunkline_router.log.sqlite import restore as restoration
from trunkline_router.log.sqlite.database import SqliteDatabase

if TYPE_CHECKING:
    # The commands need the data folder only, and are quick without the settings.
    from trunkline_router.settings import RouterSettings

#: Name of the database in the data folder.
SQLITE_FILE = "trunkline.db"


def open_database(settings: RouterSettings) -> LogDatabase:
    """Open the storage that the settings select. Raises StartError.

    An engine joins here with one line.
    """
    try:
        data_keys = load_data_keys(settings)
    except DataKeyError as error:
        raise StartError(str(error)) from None
    return SqliteDatabase(settings.data_dir / SQLITE_FILE, data_keys)


def back_up(data_dir: Path, target: Path, *, force: bool, progress: backup.Progress) -> BackupManifest:
    """Back up the log of a data folder, whether a router runs or not. Raises BackupFailed."""
    return backup.back_up(data_dir / SQLITE_FILE, target, force=force, progress=progress)


def check(path: Path) -> list[str]:
    """Verify the log of a data folder, or a backup. Returns its problems. Raises BackupFailed."""
    return backup.check_file(path / SQLITE_FILE if path.is_dir() else path)


def restore(
    data_dir: Path, file: Path, audit: Path | None, *, progress: backup.Progress
) -> restoration.RestoreReport:
    """Replace the log of a data folder by a backup; no router may run. Raises BackupFailed."""
    try:
        data_keys = data_keys_of_environment()
    except DataKeyError as error:
        raise BackupFailed(str(error)) from None
    return restoration.restore(data_dir / SQLITE_FILE, file, audit, progress=progress, data_keys=data_keys)
