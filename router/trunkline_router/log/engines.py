"""Opens the log with the engine that the settings select: the only module that imports an engine."""

from __future__ import annotations

from trunkline_runtime.private_files import create_private_folder, narrow
from trunkline_runtime.process import StartError

from trunkline_router.log.interface import Log
from trunkline_router.log.sqlite.engine import SqliteLog
from trunkline_router.settings import RouterSettings

#: Name of the database in the data folder.
SQLITE_FILE = "trunkline.db"


async def open_log(settings: RouterSettings) -> Log:
    """Open the log in the data folder, which is created if missing. Raises StartError.

    An engine joins here with one line; its `open` returns a Log.
    """
    try:
        create_private_folder(settings.data_dir)
        # With the write-ahead log and the lock.
        narrow(sorted(settings.data_dir.glob(f"{SQLITE_FILE}*")))
        return SqliteLog.open(settings.data_dir / SQLITE_FILE)
    except Exception as error:
        problem = f"cannot open the log in {settings.data_dir}: {error}"
        raise StartError(f"{problem}. Set TRUNKLINE_DATA_DIR to use another folder.") from error
