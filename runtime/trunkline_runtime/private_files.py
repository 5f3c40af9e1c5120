"""Files and folders that only their owner may use, whatever the umask.

The umask can only take rights away, so a file created with the right mode is never open to others, not even
for a moment. Files that already exist with wider modes are narrowed.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable
from pathlib import Path

FOLDER_MODE = 0o700
FILE_MODE = 0o600


def open_private(name: str | os.PathLike[str], flags: int) -> int:
    """Open a file; if it is created, only its owner can use it. Usable as `opener` of `open`."""
    return os.open(name, flags | os.O_CLOEXEC, mode=FILE_MODE)


def create_private_folder(folder: Path) -> None:
    """Create a folder, and missing folders above it, for its owner only; or narrow an existing one.

    A sticky folder such as /tmp is shared by design and keeps its mode. Raises OSError if the folder cannot
    be created.
    """
    for missing in reversed([each for each in (folder, *folder.parents) if not each.exists()]):
        missing.mkdir(mode=FOLDER_MODE, exist_ok=True)
    # Something else of this name: the caller's first file in it fails, and names it.
    if folder.is_dir() and not folder.stat().st_mode & stat.S_ISVTX:
        narrow((folder,))


def create_private_file(path: Path) -> None:
    """Create an empty file for its owner only, or narrow an existing one. Raises OSError."""
    try:
        os.close(open_private(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        # Not opened: closing it would drop the locks that this process may have on it.
        narrow((path,))


def narrow(paths: Iterable[Path]) -> None:
    """Take the rights of others from files and folders that exist; logs one line if there were any.

    A path whose mode cannot be changed, because it has another owner, is logged and left as it is.
    """
    narrowed: dict[str, str] = {}
    failed: dict[str, str] = {}
    for path in paths:
        try:
            mode = stat.S_IMODE(path.stat().st_mode)
            if not mode & 0o077:
                continue
            path.chmod(mode & FOLDER_MODE)
            narrowed[str(path)] = f"{mode:04o}"
        except FileNotFoundError:
            continue
        except OSError as error:
            failed[str(path)] = str(error.strerror)
    if narrowed:
        _warn("files were open to other users; now only their owner can use them", modes=narrowed)
    if failed:
        _warn("files are open to other users, and their modes cannot be changed", problems=failed)


def _warn(event: str, **values: object) -> None:
    # Imported here: the command line creates files, too, and is quick without structlog.
    import structlog

    structlog.get_logger().warning(event, **values)
