"""Watchdog process that kills the children of a parent that died.

A parent killed with SIGKILL cannot stop its children. The guard reads their process ids from a pipe that the
parent keeps open. When the pipe closes, for whatever reason, the guard kills the remaining children. Only
pipes and POSIX sessions are needed.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from contextlib import suppress


class Guard:
    """Parent's handle on the guard process. Start children with `start_new_session=True`."""

    def __init__(self) -> None:
        command = [sys.executable, __file__]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, text=True, start_new_session=True)
        assert self._process.stdin is not None
        self._pipe = self._process.stdin

    def add(self, pid: int) -> None:
        """Kill the child's whole session when this process ends."""
        self._write(f"+{pid}")

    def forget(self, pid: int) -> None:
        """Stop guarding a child that has ended: its process id may be reused."""
        self._write(f"-{pid}")

    def close(self) -> None:
        """Kill the remaining children and wait for the guard to exit."""
        with suppress(OSError):
            self._pipe.close()
        self._process.wait()

    def _write(self, line: str) -> None:
        with suppress(OSError):
            self._pipe.write(line + "\n")
            self._pipe.flush()


def main() -> None:
    """Run the guard process."""
    guarded: set[int] = set()
    for line in sys.stdin:
        sign, pid = line[0], int(line[1:])
        if sign == "+":
            guarded.add(pid)
        else:
            guarded.discard(pid)
    for pid in guarded:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(pid, signal.SIGKILL)


if __name__ == "__main__":
    main()
