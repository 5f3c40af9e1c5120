"""Router, edges and workers of a test module, which tests kill and restart."""

from __future__ import annotations

import asyncio
import re
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.request import urlopen

from tests.support.patience import patient
from tests.support.processes import OPERATOR_KEY, Process, edge_process, router_process, worker_process

if TYPE_CHECKING:
    from collections.abc import Iterator

WORKER = Path(__file__).with_name("worker_script.py")
#: Stderr output of a process on an unexpected error.
_TRACEBACK = re.compile(
    r'Traceback|"exception"|Fatal error|Exception in ASGI|never retrieved|never awaited|Exception ignored'
)

#: Running fleets, which conftest checks after each test.
running_fleets: list[Fleet] = []


class Fleet:
    """Processes with one data directory. `router` is the latest router, running or not."""

    router: Process

    def __init__(self, data: Path, stack: ExitStack, env: dict[str, str]) -> None:
        self._data = data
        self._stack = stack
        self._env = env
        self.processes: list[Process] = []

    @property
    def operator_key(self) -> str:
        """Operator key of the router."""
        return self._env.get("TRUNKLINE_OPERATOR_KEY", OPERATOR_KEY)

    @property
    def edges(self) -> list[Process]:
        """All edges, including killed ones."""
        return [process for process in self.processes if process.name == "edge"]

    def start_router(self, **env: str) -> Process:
        """Start the router; after a kill, restart it on the same port with the same data."""
        if self.processes:
            env = {"TRUNKLINE_ROUTER_LISTEN": self.router.address} | env
        self.router = self._add(router_process(self._data, **(self._env | env)))
        return self.router

    def start_edge(self, **env: str) -> Process:
        """Start another edge, with a new edge id unless `env` sets one."""
        name = f"edge-{len(self.processes)}"
        return self._add(edge_process(self.router.address, **({"TRUNKLINE_EDGE_ID": name} | env)))

    def start_worker(self, mode: str, agent: str = "echo") -> Process:
        """Start worker_script.py in a mode."""
        env = {"WORKER_MODE": mode, "WORKER_AGENT": agent}
        return self._add(worker_process(self.router.address, WORKER, **env))

    async def restart_router(self, **env: str) -> Process:
        """Kill the router with SIGKILL and restart it without blocking the event loop."""
        await asyncio.to_thread(self.router.kill)
        return await asyncio.to_thread(lambda: self.start_router(**env))

    def assert_no_tracebacks(self) -> None:
        """Fail if a process has written a traceback."""
        for process in self.processes:
            found = _TRACEBACK.search(process.stderr)
            assert not found, f"{process.name} wrote {found and found.group()}:\n{process.stderr}"

    def _add(self, started: contextmanager[Process]) -> Process:  # type: ignore[valid-type]
        process = self._stack.enter_context(started)
        self.processes.append(process)
        return process


@contextmanager
def fleet_of(data: Path, edges: int = 1, **env: str) -> Iterator[Fleet]:
    """Run a router with environment `env`, and `edges` edges, until the block ends."""
    with ExitStack() as stack:
        fleet = Fleet(data, stack, env)
        running_fleets.append(fleet)
        stack.callback(running_fleets.remove, fleet)
        fleet.start_router()
        for _ in range(edges):
            fleet.start_edge()
        yield fleet
        fleet.assert_no_tracebacks()


def metric(process: Process, name: str, absent: float | None = None) -> float:
    """Return a metric by name and labels, such as `trunkline_edge_connections`.

    A missing metric counts as `absent` or, without that, raises IndexError.
    """
    with urlopen(f"http://{process.address}/metrics", timeout=patient(10)) as response:
        lines = response.read().decode().splitlines()
    found = [float(line.rpartition(" ")[2]) for line in lines if line.startswith(f"{name} ")]
    if not found and absent is not None:
        return absent
    return found[0]


def rss_bytes(process: Process) -> int:
    """Return the resident memory of a process. Linux only."""
    pages = int(Path(f"/proc/{process.pid}/statm").read_text().split()[1])
    return pages * 4096
