"""Two routers on one database: one owns the log, the other one waits; edges and workers know both."""

from __future__ import annotations

import time
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

import grpc
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpc_health.v1.health_pb2_grpc import HealthStub

from tests.e2e.chaos import SCRIPT as CHAOS_WORKER
from tests.e2e.fleet import Fleet, running_fleets
from tests.support.fault_proxy import FaultProxy
from tests.support.patience import patient, under_load
from tests.support.processes import Process, edge_process, router_process, worker_process

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

#: Name of a service in health checks: SERVING at the router that owns the log.
SERVICE = "trunkline.v1.EdgeService"
LEASE_S = 1.0
HEALTH_TIMEOUT_S = 0.5
#: Bound on a takeover, beside the lease.
TAKEOVER_S = patient(20)


class StandbyFleet(Fleet):
    """Routers by name, `a` and `b`, with edges and workers; `router` is the one that owns the log."""

    def __init__(self, data: Path, stack: ExitStack, env: dict[str, str]) -> None:
        super().__init__(data, stack, env)
        self.routers: dict[str, Process] = {}
        #: Between edges and workers, and each router.
        self.links: dict[str, FaultProxy] = {}

    @property
    def router(self) -> Process:  # type: ignore[override]
        """The router that owns the log; waits for one."""
        return self.await_owner()

    @property
    def addresses(self) -> str:
        """Addresses of all routers, as edges and workers take them."""
        return ",".join(link.address for link in self.links.values())

    @property
    def lease_s(self) -> float:
        """Ownership lease of the routers."""
        return float(self._env["TRUNKLINE_OWNERSHIP_LEASE_S"])

    @property
    def reply_lease_s(self) -> float:
        """Time after which a reply whose worker has gone expires."""
        return float(self._env["TRUNKLINE_REPLY_LEASE_S"])

    @property
    def standbys(self) -> list[Process]:
        """Running routers that do not own the log."""
        owner = self.router
        return [router for router in self.routers.values() if router is not owner and router.running]

    def start_named(self, name: str, **env: str) -> Process:
        """Start a router; after a kill, on the same port."""
        if name in self.routers:
            env = {"TRUNKLINE_ROUTER_LISTEN": self.routers[name].address} | env
        router = self.routers[name] = self._add(router_process(self._data / name, **(self._env | env)))
        if name not in self.links:
            self.links[name] = self._stack.enter_context(FaultProxy(router.address))
        return router

    def start_edge(self, **env: str) -> Process:
        """See Fleet. The edge knows all routers."""
        name = f"edge-{len(self.processes)}"
        return self._add(edge_process(self.addresses, **({"TRUNKLINE_EDGE_ID": name} | env)))

    def start_chaos_worker(self) -> Process:
        """Start chaos_worker_script.py, which knows all routers."""
        return self._add(worker_process(self.addresses, CHAOS_WORKER))

    def name_of(self, router: Process) -> str:
        """Return the name of a router."""
        return next(name for name, each in self.routers.items() if each is router)

    def await_owner(self, *, but: Process | None = None) -> Process:
        """Wait until a router, another one than `but`, owns the log. Blocks."""
        deadline = time.monotonic() + TAKEOVER_S
        while time.monotonic() < deadline:
            for router in self.routers.values():
                if router is not but and router.running and owns_log(router):
                    return router
            time.sleep(0.01)
        raise AssertionError(f"no router owns the log within {TAKEOVER_S:g} s:\n{self.logs()}")

    def logs(self) -> str:
        """Return what all routers have logged."""
        return "\n".join(f"{name}:\n{router.stderr}" for name, router in self.routers.items())


def owns_log(router: Process) -> bool:
    """Return whether a router reports that it owns the log; a frozen one reports nothing."""
    with grpc.insecure_channel(router.address, [("grpc.enable_http_proxy", 0)]) as channel:
        try:
            answer = HealthStub(channel).Check(HealthCheckRequest(service=SERVICE), timeout=HEALTH_TIMEOUT_S)
        except grpc.RpcError:
            return False
    return bool(answer.status == HealthCheckResponse.SERVING)


@contextmanager
def standby_fleet(
    data: Path, dsn: str, *, routers: int = 2, edges: int = 1, **env: str
) -> Iterator[StandbyFleet]:
    """Run routers with their log at `dsn`, and edges, until the block ends. The first router owns the log."""
    env = {
        "TRUNKLINE_DATABASE_URL": dsn,
        "TRUNKLINE_OWNERSHIP_LEASE_S": str(under_load(LEASE_S)),
    } | env
    with ExitStack() as stack:
        fleet = StandbyFleet(data, stack, env)
        running_fleets.append(fleet)
        stack.callback(running_fleets.remove, fleet)
        for name in "abc"[:routers]:
            fleet.start_named(name)
            fleet.await_owner()
        for _ in range(edges):
            fleet.start_edge()
        yield fleet
        fleet.assert_no_tracebacks()
