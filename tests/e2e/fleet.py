"""Routers, edges and workers of one test module, killed and started again as tests need it."""

from __future__ import annotations

import asyncio
import re
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.request import urlopen

from tests.support.patience import patient
from tests.support.processes import Process, edge_process, router_process, worker_process

if TYPE_CHECKING:
    from collections.abc import Iterator

WORKER = Path(__file__).with_name("worker_script.py")
#: What a process writes where something went wrong that nobody expected.
_TRACEBACK = re.compile(r'Traceback|"exception"|never retrieved|never awaited|Exception ignored')

#: Fleets that are running: conftest looks at them after each test.
running_fleets: list[Fleet] = []


class Fleet:
    """Processes with one data folder. `router` is the one that runs, or that ran last."""

    router: Process

    def __init__(self, data: Path, stack: ExitStack, env: dict[str, str]) -> None:
        self._data = data
        self._stack = stack
        self._env = env
        self.processes: list[Process] = []

    @property
    def operator_key(self) -> str:
        """The operator's, which the router has made."""
        return (self._data / "operator.key").read_text().strip()

    @property
    def edges(self) -> list[Process]:
        """The edges, also those that were killed."""
        return [process for process in self.processes if process.name == "edge"]

    def start_router(self, **env: str) -> Process:
        """Start the router; again, it is the same one after a restart: same port, same data."""
        if self.processes:
            env = {"TRUNKLINE_ROUTER_LISTEN": self.router.address} | env
        self.router = self._add(router_process(self._data, **(self._env | env)))
        return self.router

    def start_edge(self, **env: str) -> Process:
        """Start one more edge, with a name of its own unless `env` says otherwise."""
        name = f"edge-{len(self.processes)}"
        return self._add(edge_process(self.router.address, **({"TRUNKLINE_EDGE_ID": name} | env)))

    def start_worker(self, mode: str, agent: str = "echo") -> Process:
        """Start the worker of worker_script.py."""
        env = {"WORKER_MODE": mode, "WORKER_AGENT": agent}
        return self._add(worker_process(self.router.address, WORKER, **env))

    async def restart_router(self, **env: str) -> Process:
        """Kill the router with SIGKILL and start it again, while the test's own loop goes on."""
        await asyncio.to_thread(self.router.kill)
        return await asyncio.to_thread(lambda: self.start_router(**env))

    def assert_quiet(self) -> None:
        """No process has written a traceback."""
        for process in self.processes:
            found = _TRACEBACK.search(process.stderr)
            assert not found, f"{process.name} wrote {found and found.group()}:\n{process.stderr}"

    def _add(self, started: contextmanager[Process]) -> Process:  # type: ignore[valid-type]
        process = self._stack.enter_context(started)
        self.processes.append(process)
        return process


@contextmanager
def fleet_of(data: Path, edges: int = 1, **env: str) -> Iterator[Fleet]:
    """A router and so many edges; `env` is the router's. All is stopped at the end."""
    with ExitStack() as stack:
        fleet = Fleet(data, stack, env)
        running_fleets.append(fleet)
        stack.callback(running_fleets.remove, fleet)
        fleet.start_router()
        for _ in range(edges):
            fleet.start_edge()
        yield fleet
        fleet.assert_quiet()


def metric(process: Process, name: str, absent: float | None = None) -> float:
    """A metric of an edge, by its name and labels, such as `trunkline_edge_connections`.

    Where it is not there it is `absent`, or fails without one.
    """
    with urlopen(f"http://{process.address}/metrics", timeout=patient(10)) as response:
        lines = response.read().decode().splitlines()
    found = [float(line.rpartition(" ")[2]) for line in lines if line.startswith(f"{name} ")]
    if not found and absent is not None:
        return absent
    return found[0]


def rss_bytes(process: Process) -> int:
    """Memory that the process holds. Linux only."""
    pages = int(Path(f"/proc/{process.pid}/statm").read_text().split()[1])
    return pages * 4096
