"""Loads data keys from the settings, and follows their file while the router runs."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import structlog

from trunkline_router.log.data_keys import DataKeyError, DataKeys, parse_data_keys
from trunkline_router.log.interface import Log

if TYPE_CHECKING:
    # The settings are not imported by commands, which are quick without them.
    from trunkline_router.settings import RouterSettings

_log = structlog.get_logger()

KEY, FILE = "TRUNKLINE_DATA_KEY", "TRUNKLINE_DATA_KEY_FILE"

#: Rows of a key file that are read at most.
MAX_FILE_BYTES = 64 << 10


def load_data_keys(settings: RouterSettings) -> DataKeys | None:
    """Load the data keys; None if there are none. Raises DataKeyError, whose text has no key."""
    return _load(settings.data_key.get_secret_value(), settings.data_key_file)


def reload_data_keys(settings: RouterSettings, previous: DataKeys | None) -> DataKeys | None:
    """Load the data keys once more; an invalid file is logged and changes nothing."""
    try:
        return load_data_keys(settings)
    except DataKeyError as error:
        _log.error("data key file is invalid; the previous keys stay in use", problem=str(error))
        return previous


def data_keys_of_environment() -> DataKeys | None:
    """Load the data keys for a command, like `load_data_keys`."""
    file = os.environ.get(FILE)
    return _load(os.environ.get(KEY, ""), Path(file) if file else None)


def _load(key: str, file: Path | None) -> DataKeys | None:
    if key and file:
        raise DataKeyError(f"{KEY} and {FILE} are both set; use one")
    if file:
        return _read(file)
    return parse_data_keys([key], KEY) if key else None


def _read(path: Path) -> DataKeys:
    try:
        with path.open(encoding="ascii") as file:
            text = file.read(MAX_FILE_BYTES)
    except UnicodeDecodeError:
        raise DataKeyError(f"{FILE}: {path} is not ASCII") from None
    except OSError as error:
        raise DataKeyError(f"{FILE}: {path}: {error.strerror}") from None
    return parse_data_keys(text.splitlines(), f"{FILE} {path}")


class DataKeyFile:
    """Follows the file of data keys: a new first key wraps the tenants' keys within seconds of a change."""

    def __init__(self, path: Path | None, log: Log) -> None:
        self._path = path
        self._log = log
        # Read once more at first: it may have changed since the start.
        self._seen: tuple[int, ...] = ()

    async def refresh(self) -> None:
        """Use the keys in the file if it changed; an invalid file is logged once and changes nothing.

        Raises LogUnavailable; the next call then tries again.
        """
        stamp = self._stamp()
        if self._path is None or stamp == self._seen:
            return
        try:
            keys = _read(self._path)
        except DataKeyError as error:
            _log.error("data key file is invalid; the previous keys stay in use", problem=str(error))
        else:
            wrapped = await self._log.use_data_keys(keys)
            if wrapped or self._seen:
                _log.info("data keys reloaded", current=keys.current.key_id, tenant_keys_wrapped=wrapped)
        self._seen = stamp

    def _stamp(self) -> tuple[int, ...]:
        """A value that changes with the file."""
        try:
            found = self._path.stat() if self._path is not None else None
        except OSError:
            found = None
        return (found.st_mtime_ns, found.st_size, found.st_ino) if found is not None else ()
