"""Number of the last commit, kept in the database and in a file beside it, by which lost commits are noticed.

A database whose number is lower than the mark has lost commits: an older copy was put in place, or its
write-ahead log was deleted, cut or damaged, of which SQLite uses the beginning without a word.

The mark is written after each commit and before anybody hears of it, without a sync: it survives the process,
and after a power failure it may be older, never newer than the database.
"""

from __future__ import annotations

import os
import sqlite3
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple
from zlib import crc32

from trunkline_runtime.private_files import open_private

_READ = "SELECT log_id, commits FROM log_state"
_WRITE = "UPDATE log_state SET commits = ? WHERE id = 1"


class LogState(NamedTuple):
    """Identity of a database, and the number of its commits."""

    log_id: str
    commits: int


#: No database has this identity.
_UNKNOWN = LogState("unknown", 0)


def read_state(db: sqlite3.Connection) -> LogState:
    """Read the state of a database."""
    return LogState(*db.execute(_READ).fetchone())


def write_commits(db: sqlite3.Connection, commits: int) -> None:
    """Set the number of commits, as part of the last of them."""
    db.execute(_WRITE, (commits,))


def mark_path(path: Path) -> Path:
    """Return the path of a database's mark."""
    return path.with_name(path.name + ".mark")


class CommitMark:
    """The file `<name>.mark`."""

    def __init__(self, path: Path, log_id: str) -> None:
        """Open the mark of the database at `path`; the file is created if missing."""
        self._fd = open_private(mark_path(path), os.O_RDWR | os.O_CREAT)
        self._log_id = log_id

    def write(self, commits: int) -> None:
        """Set the number of the last commit. If that fails, the mark is older, which hides no commit."""
        text = f"{self._log_id} {commits:020d}"
        with suppress(OSError):
            os.pwrite(self._fd, f"{text} {crc32(text.encode()):08x}\n".encode(), 0)

    def distrust(self) -> None:
        """Let the next start take the database for an older copy."""
        self._log_id = "older-copy"

    def sync(self) -> None:
        """Make the mark durable."""
        os.fsync(self._fd)

    def close(self) -> None:
        """Close the file."""
        os.close(self._fd)


def read_mark(path: Path) -> LogState | None:
    """Read the mark of the database at `path`; None if it is missing or empty.

    One that is damaged, or cannot be read, is that of another database.
    """
    try:
        content = mark_path(path).read_bytes()
        if not content:
            return None
        log_id, commits, crc = content.decode("ascii").split()
        if crc32(f"{log_id} {commits}".encode()) == int(crc, 16):
            return LogState(log_id, int(commits))
    except FileNotFoundError:
        return None
    except (OSError, ValueError):
        pass
    return _UNKNOWN


def missing_commits(state: LogState, mark: LogState | None) -> int | None:
    """Return how many commits a database lacks by its mark; 0 if that cannot be told, None for none."""
    if state.commits == 0 and mark is None:
        # New, or of a version that kept no mark.
        return None
    if mark is None or mark.log_id != state.log_id:
        return 0
    return mark.commits - state.commits if mark.commits > state.commits else None
