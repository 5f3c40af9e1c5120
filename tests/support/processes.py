"""Real processes for tests: started, waited for, stopped, and never left behind.

    with router_process(tmp_path) as router, edge_process(router.address) as edge:
        async with websockets.connect(f"ws://{edge.address}/v1/connect?…"): ...

The context managers are plain ones and serve tests of both kinds. Starting blocks until the process
says that it is ready, which is well under a second; an `async` test that must not stand still while
that lasts starts it with `await asyncio.to_thread(Process.start, …)`. `terminate` and `wait` block
likewise.

Processes see no TRUNKLINE_ variable of the person who runs the tests, only those a test names.
"""

from __future__ import annotations

import atexit
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any, Self

import pytest
from guard import Guard

from tests.support.patience import patient

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

ROOT = Path(__file__).resolve().parents[2]
READY_TIMEOUT_S = patient(20)
STOP_TIMEOUT_S = patient(15)


class Process:
    """One child process, in a session of its own. Its stdout is read by lines, its stderr kept.

    Every wait has a bound, and fails with what the process wrote to stderr.
    """

    def __init__(self, args: Sequence[str], env: Mapping[str, str], name: str, cwd: Path) -> None:
        self.name = name
        self.address = ""
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115  closed by `close`
        self._lines: SimpleQueue[str | None] = SimpleQueue()
        self._popen = subprocess.Popen(
            args,
            cwd=cwd,
            env=environment(env),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            text=True,
            start_new_session=True,
        )
        guard().add(self._popen.pid)
        self._reader = threading.Thread(target=self._read, name=f"{name} stdout", daemon=True)
        self._reader.start()

    @classmethod
    def start(
        cls,
        args: Sequence[str],
        env: Mapping[str, str] | None = None,
        *,
        name: str = "",
        cwd: Path = ROOT,
        ready: Callable[[str], object] | None = None,
    ) -> Self:
        """Start `args` and wait until it is ready.

        Without `ready` that is when it prints a JSON line `{"listening": "host:port"}`, which sets
        `address`; with it, when it prints a line for which `ready` says so.
        """
        process = cls(args, env or {}, name or Path(args[0]).name, cwd)
        try:
            if ready is None:
                process.address = listening(process.line(listening))
            else:
                process.line(ready)
        except BaseException:
            process.close()
            raise
        return process

    @property
    def pid(self) -> int:
        """The process id."""
        return self._popen.pid

    @property
    def running(self) -> bool:
        """It has not ended yet."""
        return self._popen.poll() is None

    @property
    def stderr(self) -> str:
        """All that it wrote to stderr so far."""
        size = os.fstat(self._stderr.fileno()).st_size
        return os.pread(self._stderr.fileno(), size, 0).decode(errors="replace")

    def line(self, wanted: Callable[[str], object] = bool, timeout_s: float = READY_TIMEOUT_S) -> str:
        """The next line of stdout for which `wanted` is true; those before it are dropped."""
        until = time.monotonic() + timeout_s
        while True:
            try:
                text = self._lines.get(timeout=max(until - time.monotonic(), 0))
            except Empty:
                raise self._failure(f"did not print the line waited for within {timeout_s:g} s") from None
            if text is None:
                self._lines.put(None)
                raise self._failure(f"ended with exit code {self.wait()}")
            if wanted(text):
                return text

    def wait(self, timeout_s: float = STOP_TIMEOUT_S) -> int:
        """Wait until it has ended. Returns its exit code, negative for a signal."""
        try:
            return self._popen.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise self._failure(f"did not end within {timeout_s:g} s") from None

    def signal(self, number: int) -> None:
        """Send it a signal, such as SIGSTOP and SIGCONT."""
        self._popen.send_signal(number)

    def terminate(self, timeout_s: float = STOP_TIMEOUT_S) -> int:
        """Ask it to end and wait until it has. Returns its exit code."""
        self._popen.terminate()
        return self.wait(timeout_s)

    def kill(self) -> None:
        """Kill it and all that it started, as `kill -9` does, and wait until it is gone."""
        # Also when it has ended itself: what it started may still be there.
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)
        self._popen.wait()

    def close(self) -> None:
        """Kill it if it still runs, and let go of everything. May be called again."""
        if self._stderr.closed:
            return
        self.kill()
        guard().forget(self.pid)
        self._reader.join(STOP_TIMEOUT_S)
        self._stderr.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _read(self) -> None:
        assert self._popen.stdout is not None
        with self._popen.stdout as lines:
            for line in lines:
                self._lines.put(line.rstrip("\n"))
        self._lines.put(None)

    def _failure(self, what: str) -> AssertionError:
        return AssertionError(f"{self.name} {what}; its stderr:\n{self.stderr}")


@contextmanager
def router_process(data: Path, **env: str) -> Iterator[Process]:
    """A router with its log in `data`, on a port of its own unless `env` names one.

    `env` are variables by their full names. A router started again on the same `data` with
    `TRUNKLINE_ROUTER_LISTEN=router.address` is the same router after a restart.
    """
    defaults = {
        "TRUNKLINE_ROUTER_LISTEN": "127.0.0.1:0",
        "TRUNKLINE_DATA_DIR": str(data),
        "TRUNKLINE_TENANTS": "demo",
    }
    with Process.start(
        [sys.executable, "-m", "trunkline_router", "serve"], defaults | env, name="router"
    ) as process:
        yield process


@contextmanager
def edge_process(router_address: str, **env: str) -> Iterator[Process]:
    """An edge linked to the router, on a port of its own unless `env` names one."""
    defaults = {"TRUNKLINE_EDGE_LISTEN": "127.0.0.1:0", "TRUNKLINE_ROUTER": router_address}
    with Process.start(
        [sys.executable, "-m", "trunkline_edge", "serve"], defaults | env, name="edge"
    ) as process:
        yield process


@contextmanager
def worker_process(
    router_address: str, script: Path = ROOT / "examples" / "echo_agent.py", **env: str
) -> Iterator[Process]:
    """A worker attached to the router: the echo agent, or another script that prints a line when attached."""
    defaults = {"TRUNKLINE_ROUTER": router_address, **importing_tests()}
    with Process.start(
        [sys.executable, str(script)], defaults | env, name=script.stem, ready=bool
    ) as process:
        yield process


def importing_tests() -> dict[str, str]:
    """Environment in which a script of the tests, run by its path, imports the package `tests`."""
    return {"PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))}


def listening(line: str) -> str:
    """The address in a readiness line; empty for any other line."""
    try:
        address: Any = json.loads(line)["listening"]
    except (ValueError, KeyError, TypeError):
        return ""
    return str(address)


linux = pytest.mark.skipif(
    sys.platform != "linux", reason="asks Linux about processes that are not its children"
)


def children(pid: int) -> list[int]:
    """The process ids of all that a process started, whose parent it still is. Linux only."""
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def command_line(pid: int) -> list[str]:
    """The command of any process, its words. Linux only."""
    return Path(f"/proc/{pid}/cmdline").read_text().rstrip("\0").split("\0")


def ended(pid: int, timeout_s: float = STOP_TIMEOUT_S) -> bool:
    """Wait for the end of any process, not just a child; false if it doesn't come in time. Linux only."""
    try:
        handle = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        return bool(select.select([handle], [], [], timeout_s)[0])
    finally:
        os.close(handle)


def environment(env: Mapping[str, str]) -> dict[str, str]:
    """The environment of a child: that of the tests without their TRUNKLINE_ variables, and `env`."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("TRUNKLINE_")}
    return {**inherited, "PYTHONUNBUFFERED": "1", **env}


@cache
def guard() -> Guard:
    """Kills what is left should the tests themselves be killed."""
    started = Guard()
    atexit.register(started.close)
    return started
