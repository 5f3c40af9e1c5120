"""Two routers on one PostgreSQL: the owner is lost, or the database; time to the acks on the same sockets."""

import os
import signal
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from bench.processes import Child, Skipped, Testbed, testbed
from bench.scale import Figures, Scale, Step
from bench.systems import BRIDGE
from tests.support.postgres import PostgresServer
from tests.support.postgres_binaries import missing

#: How the owner is lost.
SIGNALS = {"killed": signal.SIGKILL, "frozen": signal.SIGSTOP, "stopped": signal.SIGTERM}
ACKED_WITHIN_S = 60.0
READY_WITHIN_S = 30.0
#: PostgreSQL's own defaults; those of test servers are smaller.
SETTINGS = {"shared_buffers": "128MB", "max_wal_size": "1GB"}


def steps(scale: Scale) -> int:
    """Return the number of times that `run` calls `step`."""
    return scale.repeats * len(SIGNALS) + 2


def run(scale: Scale, step: Step) -> Figures:
    """Lose the owner in each way, repeatedly, then the database. Raises Skipped if there is no PostgreSQL."""
    if reason := missing():
        raise Skipped(reason)
    with ExitStack() as stack:
        parent = Path(tempfile.gettempdir())
        server = stack.enter_context(PostgresServer.create(parent=parent, **SETTINGS))
        schema = server.fresh_schema()
        replica = server.base_backup(synchronous=True)
        url = schema.replace(server.address, f"{server.address},{replica.address}")
        bed = stack.enter_context(testbed())
        fleet = _Fleet(bed, url)
        clients = bed.generator("survivors", fleet.edge_port)
        _open(clients, scale.survivors)
        repeats: dict[str, list[Figures]] = {how: [] for how in SIGNALS}
        for _ in range(scale.repeats):
            for how, number in SIGNALS.items():
                step(f"{scale.survivors:,} clients, owner {how}")
                repeats[how].append(fleet.lose_owner(number, clients))
        step("the database fails over")
        promoted = _fail_over(server, replica, clients)
        step(f"{scale.relinked:,} clients, owner stopped")
        _open(clients, scale.relinked - scale.survivors)
        relinked = fleet.lose_owner(signal.SIGTERM, clients)
        phases = [*(each for group in repeats.values() for each in group), promoted, relinked]
        stored = int(replica.execute(f"SELECT count(*) FROM {_schema(schema)}.messages"))
        return {
            "clients": scale.survivors,
            "relinked_clients": scale.relinked,
            "ways": {how: _worst(group) for how, group in repeats.items()},
            "promoted": promoted,
            "relinked": relinked,
            "unacked": sum(phase["unacked"] for phase in phases),
            # Sent again by the edge, perhaps more than once; each is in the log once.
            "stored_less_sent": stored - sum(phase["sent"] for phase in phases),
        }


class _Fleet:
    """Two routers and an edge that knows both."""

    def __init__(self, bed: Testbed, database_url: str) -> None:
        self._bed = bed
        self._url = database_url
        self._routers = dict(self._router() for _ in range(2))
        addresses = ",".join(self._routers)
        env = {
            "TRUNKLINE_EDGE_LISTEN": "127.0.0.1:0",
            "TRUNKLINE_ROUTER": addresses,
            "TRUNKLINE_DATA_DIR": str(bed.folder("edge")),
        }
        _, self.edge_port = bed.server("edge", "-m", "trunkline_edge", "serve", env=env)

    def _router(self, address: str = "127.0.0.1:0") -> tuple[str, Child]:
        child, port = self._bed.router(database_url=self._url, listen=address)
        return f"127.0.0.1:{port}", child

    def lose_owner(self, number: signal.Signals, clients: Child) -> Figures:
        """Send a signal to the owner; return the delays of acks. Afterwards there are two routers again."""
        address = self._owner()
        owner = self._routers[address]
        since_ns = time.monotonic_ns()
        os.kill(owner.meter.pid, number)
        figures = clients.call(
            "send_all", "sent", ACKED_WITHIN_S + 10, patience_s=ACKED_WITHIN_S, since_ns=since_ns
        )
        if number == signal.SIGSTOP:
            os.kill(owner.meter.pid, signal.SIGCONT)
        else:
            owner.stop()
            self._bed.children.remove(owner)
            self._routers |= dict([self._router(address)])
        self._settle()
        return figures

    def _owner(self) -> str:
        """Return the address of the router that owns the log, once one does."""
        deadline = time.monotonic() + READY_WITHIN_S
        while time.monotonic() < deadline:
            for address in self._routers:
                if _is_ready(address):
                    return address
            time.sleep(0.05)
        raise RuntimeError("no router owns the log")

    def _settle(self) -> None:
        """Wait until one router is ready and the other one is not."""
        deadline = time.monotonic() + READY_WITHIN_S
        while [_is_ready(address) for address in self._routers].count(True) != 1:
            if time.monotonic() > deadline:
                raise RuntimeError("the routers do not settle on one owner")
            time.sleep(0.05)


def _is_ready(address: str) -> bool:
    request = health_pb2.HealthCheckRequest(service="trunkline.v1.EdgeService")
    with grpc.insecure_channel(address, [("grpc.enable_http_proxy", 0)]) as channel:
        answer = health_pb2_grpc.HealthStub(channel).Check(request, timeout=5, wait_for_ready=True)
    return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)


def _fail_over(server: PostgresServer, replica: PostgresServer, clients: Child) -> Figures:
    """Kill the database while clients wait, and promote its synchronous standby."""
    server.crash()
    since_ns = time.monotonic_ns()
    replica.promote()
    return clients.call("send_all", "sent", ACKED_WITHIN_S + 10, patience_s=ACKED_WITHIN_S, since_ns=since_ns)


def _open(clients: Child, count: int) -> None:
    opened = clients.call("open", "opened", 120, endpoint=BRIDGE.person(), count=count)
    if opened["opened"] != count:
        raise RuntimeError(f"survivors: {opened}")


def _schema(dsn: str) -> str:
    return dsn.rpartition("search_path=")[2]


def _worst(repeats: list[Figures]) -> Figures:
    """Return the repeat with the highest p99: a takeover happens once."""
    return max(repeats, key=lambda each: each["latency"].get("p99_ms", float("inf")))
