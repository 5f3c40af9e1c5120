"""Opens the log with the engine that the settings select: the only module that imports an engine."""

from __future__ import annotations

from trunkline_runtime.process import StartError

from trunkline_router.log.interface import Log
from trunkline_router.log.sqlite.engine import SqliteLog
from trunkline_router.settings import RouterSettings


async def open_log(settings: RouterSettings) -> Log:
    """Open the log in the data folder, which is created if missing. Raises StartError.

    An engine joins here with one line; its `open` returns a Log.
    """
    try:
        settings.data_dir.mkdir(parents=True, exist_ok=True)
        return SqliteLog.open(settings.data_dir / "trunkline.db")
    except Exception as error:
        problem = f"cannot open the log in {settings.data_dir}: {error}"
        raise StartError(f"{problem}. Set TRUNKLINE_DATA_DIR to use another folder.") from error
