"""New installations of PostgreSQL, made once a version and then copied."""

from __future__ import annotations

import atexit
import shutil
from functools import cache
from typing import TYPE_CHECKING

from tests.support.postgres_binaries import DATA, run, scratch_folder

if TYPE_CHECKING:
    from pathlib import Path

SUPERUSER = "postgres"
#: May log in, and owns the database; no superuser.
ROLE = "trunkline"
PASSWORD = "password-of-the-database"
DATABASE = "trunkline"

SETTINGS = {
    "listen_addresses": "127.0.0.1",
    "unix_socket_directories": "",
    # In the data folder: nothing is left in /dev/shm by a server that was killed.
    "dynamic_shared_memory_type": "mmap",
    "shared_buffers": "32MB",
    "max_connections": "100",
    "max_wal_size": "128MB",
    "wal_keep_size": "32MB",
    # For pg_rewind.
    "wal_log_hints": "on",
    # Few processes: tests start many servers on few cores.
    "max_logical_replication_workers": "0",
    # A connection costs no 4096 rounds of hashing.
    "scram_iterations": "1",
}
#: Settings that older versions do not have.
SETTINGS_SINCE_18 = {"io_method": "sync"}

HBA = f"""\
host all {SUPERUSER} 127.0.0.1/32 trust
host replication {SUPERUSER} 127.0.0.1/32 trust
host all all 127.0.0.1/32 scram-sha-256
"""


@cache
def template(version: int) -> Path:
    """Data folder of a new installation with the role and its database, to be copied."""
    folder = scratch_folder()
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    data = folder / DATA
    options = ["-U", SUPERUSER, "--encoding=UTF8", "--locale=C", "--wal-segsize=1", "--no-sync"]
    run(version, "initdb", "-D", str(data), *options, "--auth=trust", "--no-instructions")
    (data / "pg_hba.conf").write_text(HBA)
    settings = SETTINGS | (SETTINGS_SINCE_18 if version >= 18 else {})
    with (data / "postgresql.conf").open("a") as file:
        file.writelines(f"{name} = '{value}'\n" for name, value in settings.items())
    statements = [
        f"CREATE ROLE {ROLE} LOGIN PASSWORD '{PASSWORD}'",
        f"CREATE DATABASE {DATABASE} OWNER {ROLE}",
    ]
    run(version, "postgres", "--single", "-D", str(data), "postgres", stdin="\n".join(statements) + "\n")
    return data
