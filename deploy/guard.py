"""The guard: a process that sees to it that no child outlives the process that started it.

A starter that is killed with SIGKILL can't stop its children. The guard can: it reads their process
ids from a pipe whose other end the starter holds, and when the pipe ends, however that came about,
it kills those that are left. This works wherever there are pipes and sessions.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from contextlib import suppress


class Guard:
    """Starts the guard process. Children must be started with `start_new_session=True`."""

    def __init__(self) -> None:
        command = [sys.executable, __file__]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, text=True, start_new_session=True)
        assert self._process.stdin is not None
        self._pipe = self._process.stdin

    def add(self, pid: int) -> None:
        """From now on the child, and whatever it starts, ends with this process."""
        self._tell(f"+{pid}")

    def forget(self, pid: int) -> None:
        """The child has ended; its process id may come to mean another process."""
        self._tell(f"-{pid}")

    def close(self) -> None:
        """Kill what is left and end the guard."""
        with suppress(OSError):
            self._pipe.close()
        self._process.wait()

    def _tell(self, line: str) -> None:
        with suppress(OSError):
            self._pipe.write(line + "\n")
            self._pipe.flush()


def main() -> None:
    """Be the guard process."""
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
