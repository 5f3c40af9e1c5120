"""The log of one router: its file, which no other router can open meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

from trunkline_runtime.private_files import create_private_folder, narrow
from trunkline_runtime.process import StartError

from trunkline_router.log.data_keys import DataKeyError, DataKeys
from trunkline_router.log.ownership import OwnedLog
from trunkline_router.log.sqlite.engine import SqliteLog


class SqliteDatabase:
    """Implements LogDatabase. The file's lock is the lease."""

    def __init__(self, path: Path, data_keys: DataKeys | None) -> None:
        """Nothing is opened yet."""
        self._path = path
        self._data_keys = data_keys

    def describe(self) -> str:
        """See LogDatabase."""
        return str(self._path)

    async def acquire(self, must_wait: Callable[[], None]) -> OwnedLog:
        """See LogDatabase. Never waits: a file in use raises StartError. The folder is created if missing."""
        folder = self._path.parent
        try:
            create_private_folder(folder)
            # With the write-ahead log and the lock.
            narrow(sorted(folder.glob(f"{self._path.name}*")))
            return OwnedLog(SqliteLog.open(self._path, data_keys=self._data_keys), FileLease())
        except DataKeyError as error:
            raise StartError(str(error)) from None
        except Exception as error:
            problem = f"cannot open the log in {folder}: {error}"
            raise StartError(f"{problem}. Set TRUNKLINE_DATA_DIR to use another folder.") from error

    async def close(self) -> None:
        """See LogDatabase."""


class FileLease:
    """Implements Lease: the log holds the lock of its file until it is closed."""

    def is_valid(self) -> bool:
        """See Lease."""
        return True

    async def lost(self) -> str:
        """See Lease."""
        await asyncio.Event().wait()
        raise AssertionError

    async def release(self) -> None:
        """See Lease."""
