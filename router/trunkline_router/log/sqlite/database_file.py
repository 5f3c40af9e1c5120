"""The database file: its lock, its schema and its connections."""

from __future__ import annotations

import fcntl
import os
import re
import sqlite3
from pathlib import Path

from trunkline_runtime.private_files import create_private_file, open_private

from trunkline_router.log.interface import LogUnavailable
from trunkline_router.log.migration.copied_log import COPYING

SCHEMA_VERSION = 8

#: Upgrades a file from this version to the next; then everything in `schema.sql` that is missing is created.
#: The time of a migration must not depend on the size of the file.
_MIGRATIONS = {
    1: (
        "ALTER TABLE deliveries ADD COLUMN attempts INTEGER NOT NULL DEFAULT 0;"
        "CREATE TABLE events (topic_id INTEGER NOT NULL, seq INTEGER NOT NULL, created_ms INTEGER NOT NULL,"
        " change INTEGER NOT NULL, message_seq INTEGER NOT NULL, user TEXT NOT NULL, body BLOB NOT NULL,"
        " PRIMARY KEY (topic_id, seq));"
    ),
    2: "ALTER TABLE topics ADD COLUMN pruned INTEGER NOT NULL DEFAULT 0;",
    # Created again, with a column more.
    4: "DROP VIEW conversation_log;",
    5: (
        "ALTER TABLE topics ADD COLUMN forked INTEGER NOT NULL DEFAULT 0;"
        "ALTER TABLE messages ADD COLUMN crc INTEGER; ALTER TABLE events ADD COLUMN crc INTEGER;"
        "DROP VIEW IF EXISTS conversation_log;"
    ),
    # Those that wait already never expire.
    7: "ALTER TABLE deliveries ADD COLUMN expires_ms INTEGER NOT NULL DEFAULT 0;",
}

#: A commit of messages to many topics writes an index page for each topic. With small pages, round trips of
#: 500 conversations are 10 % faster than with SQLite's default of 4 KiB, and volume to few topics is as
#: fast.
_PAGE_BYTES = 1024
#: Size of the WAL at which a commit checkpoints it: 16 MB. With SQLite's default of 4 MB, messages of many
#: topics are checkpointed 30 % slower; beyond 16 MB nothing is gained.
_CHECKPOINT_PAGES = 16_000
#: Size to which the WAL file is truncated after it grew beyond that, as during a long read.
_WAL_KEPT_BYTES = 64 << 20
#: Should hold the index pages that appends to many topics touch.
_WRITER_CACHE_KIB = 64 << 10
#: Time that a statement waits for other programs' locks.
BUSY_TIMEOUT_MS = 5_000
_READER_CACHE_KIB = 16 << 10

#: Suffixes of the files that exist while a backup or a check runs. Deleting one ends it.
BACKUP_SUFFIX, CHECK_SUFFIX = ".backup", ".check"


class FileLock:
    """Excludes other processes, and other logs in this one, from the file.

    The kernel releases the lock when the process ends, however it ends. The file `<name>.lock`, which names
    the holder, stays.
    """

    def __init__(self, path: Path) -> None:
        self._fd = open_private(path.with_name(path.name + ".lock"), os.O_RDWR | os.O_CREAT)
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            holder = os.read(self._fd, 32).decode(errors="replace").strip() or "unknown"
            os.close(self._fd)
            raise LogUnavailable(f"{path} is in use by another router (process {holder})") from None
        os.truncate(self._fd, 0)
        os.pwrite(self._fd, f"{os.getpid()}\n".encode(), 0)

    def release(self) -> None:
        """Let others open the file."""
        os.close(self._fd)


def connect_writer(path: Path, *, may_be_copying: bool = False) -> sqlite3.Connection:
    """Open a connection for writing; creates the file and its schema, or upgrades an older schema.

    Only the owner can use the file. SQLite gives its companions, such as the WAL, the same mode.

    A transaction begins with the first change and ends with `commit()`: as method calls, both release the
    GIL once instead of three times.

    Raises sqlite3.Error, and LogUnavailable for a file written by a newer version, and for one that a log is
    being copied into unless it may be.
    """
    try:
        create_private_file(path)
    except OSError as error:
        raise LogUnavailable(f"{path}: {error.strerror}") from error
    db = sqlite3.connect(path, isolation_level="IMMEDIATE", check_same_thread=False)
    try:
        db.execute(f"PRAGMA busy_timeout = {BUSY_TIMEOUT_MS}")
        db.execute(f"PRAGMA page_size = {_PAGE_BYTES}")
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = FULL")
        # Overwrite what is deleted. Debian's SQLite does so by default, others do not.
        db.execute("PRAGMA secure_delete = ON")
        db.execute(f"PRAGMA wal_autocheckpoint = {_CHECKPOINT_PAGES}")
        db.execute(f"PRAGMA journal_size_limit = {_WAL_KEPT_BYTES}")
        db.execute(f"PRAGMA cache_size = -{_WRITER_CACHE_KIB}")
        if not (may_be_copying and version_of(db) == COPYING + SCHEMA_VERSION):
            _ensure_schema(db, path)
    except BaseException:
        db.close()
        raise
    return db


def connect_reader(path: Path) -> sqlite3.Connection:
    """Open a read-only connection to a file that `connect_writer` has opened."""
    db = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    db.execute("PRAGMA query_only = ON")
    db.execute("PRAGMA temp_store = MEMORY")
    db.execute(f"PRAGMA cache_size = -{_READER_CACHE_KIB}")
    # Attaches the connection to the WAL, so that the writer's connection is not the last one to close.
    db.execute("SELECT count(*) FROM sqlite_master").fetchone()
    return db


def connect_to_copy(path: Path) -> sqlite3.Connection:
    """Open a read-only connection to a file that nobody writes to, in a folder that may be read-only."""
    return sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro&immutable=1", uri=True, isolation_level=None)


def cancel_long_reads(path: Path) -> None:
    """End the backup and the check of this file, if they are running, within a few milliseconds."""
    for suffix in (BACKUP_SUFFIX, CHECK_SUFFIX):
        path.with_name(path.name + suffix).unlink(missing_ok=True)


def version_of(db: sqlite3.Connection) -> int:
    """Return the version of a file's schema."""
    version: int = db.execute("PRAGMA user_version").fetchone()[0]
    return version


def _ensure_schema(db: sqlite3.Connection, path: Path) -> None:
    version = version_of(db)
    if version == SCHEMA_VERSION:
        return
    if version > COPYING:
        raise LogUnavailable(
            f"{path} holds an unfinished copy: run `trunkline-router migrate` again, or with --discard"
        )
    if not 0 <= version < SCHEMA_VERSION:
        raise LogUnavailable(
            f"{path} has schema version {version}, and this Trunkline supports up to {SCHEMA_VERSION}:"
            " use the version that wrote it, or a newer one"
        )
    script = Path(__file__).with_name("schema.sql").read_text(encoding="utf-8")
    if version:
        missing = re.sub(
            "^CREATE (TABLE|INDEX|VIEW) ", r"CREATE \1 IF NOT EXISTS ", script, flags=re.MULTILINE
        )
        steps = [sql for before, sql in _MIGRATIONS.items() if version <= before]
        script = "\n".join([*steps, missing])
    db.executescript(f"BEGIN IMMEDIATE;\n{script}\nPRAGMA user_version = {SCHEMA_VERSION};\nCOMMIT;")
