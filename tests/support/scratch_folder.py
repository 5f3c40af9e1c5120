"""Chooses the file system of tests' temporary folders."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

MEMORY = Path("/dev/shm")
#: The whole suite writes less than half of this.
NEEDED_BYTES = 4 << 30


def use_memory() -> None:
    """Have pytest keep temporary folders in memory if it has room, unless the environment names a folder.

    Tests kill processes, never machines, and files in memory survive that as well as those on a disk. A log
    waits for each flush of a disk, many thousand times in a run.
    """
    if MEMORY.is_dir() and os.access(MEMORY, os.W_OK) and shutil.disk_usage(MEMORY).free >= NEEDED_BYTES:
        os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", str(MEMORY))
