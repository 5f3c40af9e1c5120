"""Real processes for tests, which are always stopped.

    with router_process(tmp_path) as router, edge_process(router.address) as edge:
        async with websockets.connect(f"ws://{edge.address}/v1/connect?…"): ...

The context managers are synchronous. Starting blocks until the process reports that it is ready, well under a
second. An async test that must not block starts it with `await asyncio.to_thread(Process.start, …)`;
`terminate` and `wait` block, too.

Processes inherit no TRUNKLINE_ variables from the environment of the test run.
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
    """Child process in its own session. Its stdout is read line by line, its stderr is kept.

    Every wait has a timeout and fails with the stderr of the process.
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
        """Start `args` and wait until the process is ready.

        By default it is ready when it prints a JSON line `{"listening": "host:port"}`, which sets `address`;
        with `ready`, when it prints a line for which `ready` returns a true value.
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
        """Process id."""
        return self._popen.pid

    @property
    def running(self) -> bool:
        """Whether the process has not exited."""
        return self._popen.poll() is None

    @property
    def stderr(self) -> str:
        """Stderr output so far."""
        size = os.fstat(self._stderr.fileno()).st_size
        return os.pread(self._stderr.fileno(), size, 0).decode(errors="replace")

    def line(self, wanted: Callable[[str], object] = bool, timeout_s: float = READY_TIMEOUT_S) -> str:
        """Return the next stdout line for which `wanted` is true; drop earlier lines."""
        until = time.monotonic() + timeout_s
        while True:
            try:
                text = self._lines.get(timeout=max(until - time.monotonic(), 0))
            except Empty:
                raise self._failure(f"did not print the expected line within {timeout_s:g} s") from None
            if text is None:
                self._lines.put(None)
                raise self._failure(f"exited with code {self.wait()}")
            if wanted(text):
                return text

    def wait(self, timeout_s: float = STOP_TIMEOUT_S) -> int:
        """Wait until the process exits; return its exit code, negative for a signal."""
        try:
            return self._popen.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise self._failure(f"did not exit within {timeout_s:g} s") from None

    def signal(self, number: int) -> None:
        """Send a signal, such as SIGSTOP or SIGCONT."""
        self._popen.send_signal(number)

    def terminate(self, timeout_s: float = STOP_TIMEOUT_S) -> int:
        """Send SIGTERM and wait; return the exit code."""
        self._popen.terminate()
        return self.wait(timeout_s)

    def kill(self) -> None:
        """Kill the process and its descendants with SIGKILL, and wait until it has exited."""
        # Even if it has exited: its descendants may still run.
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)
        self._popen.wait()

    def close(self) -> None:
        """Kill the process if it runs, and release all resources. Idempotent."""
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


#: The operator's key of routers that tests run.
OPERATOR_KEY = "the-operators-key-in-tests"


@contextmanager
def router_process(data: Path, **env: str) -> Iterator[Process]:
    """Run a router with its log in `data`, on a free port unless `env` sets one.

    `env` contains variables by full name. To restart a router, use the same `data` and
    `TRUNKLINE_ROUTER_LISTEN=router.address`.
    """
    defaults = {
        "TRUNKLINE_ROUTER_LISTEN": "127.0.0.1:0",
        "TRUNKLINE_DATA_DIR": str(data),
        "TRUNKLINE_TENANTS": "demo",
        "TRUNKLINE_OPERATOR_KEY": OPERATOR_KEY,
    }
    with Process.start(
        [sys.executable, "-m", "trunkline_router", "serve"], defaults | env, name="router"
    ) as process:
        yield process


@contextmanager
def edge_process(router_address: str, **env: str) -> Iterator[Process]:
    """Run an edge linked to the router, on a free port unless `env` sets one."""
    defaults = {"TRUNKLINE_EDGE_LISTEN": "127.0.0.1:0", "TRUNKLINE_ROUTER": router_address}
    with Process.start(
        [sys.executable, "-m", "trunkline_edge", "serve"], defaults | env, name="edge"
    ) as process:
        yield process


@contextmanager
def worker_process(
    router_address: str, script: Path = ROOT / "examples" / "echo_agent.py", **env: str
) -> Iterator[Process]:
    """Run a worker: the echo agent, or another script that prints a line when it is attached."""
    defaults = {"TRUNKLINE_ROUTER": router_address, **importing_tests()}
    with Process.start(
        [sys.executable, str(script)], defaults | env, name=script.stem, ready=bool
    ) as process:
        yield process


def importing_tests() -> dict[str, str]:
    """Return variables that let a test script, run by path, import the package `tests`."""
    return {"PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))}


def listening(line: str) -> str:
    """Return the address in a readiness line; empty for any other line."""
    try:
        address: Any = json.loads(line)["listening"]
    except (ValueError, KeyError, TypeError):
        return ""
    return str(address)


linux = pytest.mark.skipif(sys.platform != "linux", reason="inspects processes through Linux interfaces")


def children(pid: int) -> list[int]:
    """Return the process ids of a process's children. Linux only."""
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def command_line(pid: int) -> list[str]:
    """Return the command line of a process. Linux only."""
    return Path(f"/proc/{pid}/cmdline").read_text().rstrip("\0").split("\0")


def ended(pid: int, timeout_s: float = STOP_TIMEOUT_S) -> bool:
    """Wait until any process exits; return False on timeout. Linux only."""
    try:
        handle = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        return bool(select.select([handle], [], [], timeout_s)[0])
    finally:
        os.close(handle)


def environment(env: Mapping[str, str]) -> dict[str, str]:
    """Return a child's environment: inherited variables except TRUNKLINE_ ones, and `env`."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("TRUNKLINE_")}
    return {**inherited, "PYTHONUNBUFFERED": "1", **env}


@cache
def guard() -> Guard:
    """Guard that kills remaining processes if the tests are killed."""
    started = Guard()
    atexit.register(started.close)
    return started
