"""The router's log in PostgreSQL beside SQLite: durable publish and round trips, alternating."""

import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

from bench.aggregate import medians, totals
from bench.processes import Child, Skipped, Testbed, testbed
from bench.scale import Figures, Scale, Step
from bench.scenarios import publish, roundtrip
from bench.systems import BRIDGE
from tests.support.postgres import PostgresServer
from tests.support.postgres_binaries import missing

ENGINES = ("sqlite", "postgres")
#: PostgreSQL's own defaults, instead of those of test servers.
SETTINGS = {
    "shared_buffers": "128MB",
    "min_wal_size": "80MB",
    "max_wal_size": "1GB",
    "wal_keep_size": "0",
    "wal_log_hints": "off",
    "io_method": "worker",
    "dynamic_shared_memory_type": "posix",
}
WAL_SEGMENT_MIB = 16


@dataclass(frozen=True, slots=True)
class _Engine:
    """A router with one engine, its edge and echo agent, and the generators of its load."""

    bed: Testbed
    publisher: Child
    talkers: Child
    server: PostgresServer | None


def steps(scale: Scale) -> int:
    """Return the number of times that `run` calls `step`."""
    return scale.repeats * len(ENGINES) * len(_phases(scale))


def run(scale: Scale, step: Step) -> Figures:
    """Measure both engines in turn, phase by phase. Raises Skipped if there is no PostgreSQL."""
    if reason := missing():
        raise Skipped(reason)
    with ExitStack() as stack:
        server = stack.enter_context(
            PostgresServer.create(parent=Path(tempfile.gettempdir()), wal_segsize=WAL_SEGMENT_MIB, **SETTINGS)
        )
        engines = {
            "sqlite": stack.enter_context(_engine(None)),
            "postgres": stack.enter_context(_engine(server)),
        }
        found: Figures = {name: {} for name in engines}
        clients = 0
        for phase, wanted in _phases(scale).items():
            for engine in engines.values():
                _connect(engine, wanted - clients)
            clients = max(clients, wanted)
            repeats: dict[str, list[Figures]] = {name: [] for name in engines}
            for number in range(scale.repeats):
                for name in ENGINES[:: -1 if number % 2 else 1]:
                    step(f"{name}, {phase.replace('_', ' ')}")
                    repeats[name].append(_measured(engines[name], phase, scale))
            for name, measured in repeats.items():
                found[name][phase] = {**medians(measured), **_errors(measured)}
        return found | {"tracebacks": _tracebacks(engines)}


def _phases(scale: Scale) -> dict[str, int]:
    """Each phase, and the number of clients that must be connected."""
    rounds = {f"clients_{count}": count for count in (scale.clients[0], scale.clients[-1])}
    return dict.fromkeys(publish.PHASES, 0) | rounds


@contextmanager
def _engine(server: PostgresServer | None) -> Iterator[_Engine]:
    with testbed() as bed:
        router_port, edge_port = bed.bridge(database_url=server.fresh_schema() if server else "")
        worker = bed.start("worker", "examples/echo_agent.py", "--router", f"127.0.0.1:{router_port}")
        worker.wait_for("printed", 20)
        yield _Engine(
            bed, bed.generator("publisher", router_port), bed.generator("talkers", edge_port), server
        )


def _connect(engine: _Engine, count: int) -> None:
    if count > 0:
        opened = engine.talkers.call("open", "opened", 60, endpoint=BRIDGE.echo(), count=count)
        if opened["opened"] != count:
            raise RuntimeError(f"talkers: {opened}")


def _measured(engine: _Engine, phase: str, scale: Scale) -> Figures:
    before = _cpu_s(engine.server)
    if phase in publish.PHASES:
        seconds = scale.publish_s
        do, arguments = publish.PHASES[phase]
        figures = publish.measured(engine.bed, engine.publisher, do, {**arguments, "seconds": seconds})
        rate = figures["accepted_per_s"]
    else:
        seconds = scale.phase_s
        engine.talkers.call("closed_loop", "answered", 30, seconds=roundtrip.WARM_UP_S)
        before = _cpu_s(engine.server)
        figures = roundtrip.measured(engine.bed, engine.talkers, "closed_loop", seconds=seconds)
        rate = figures["per_s"]
    server_percent = 100 * (_cpu_s(engine.server) - before) / seconds
    return {
        **figures,
        "per_s": rate,
        "router_us": figures["cpu_percent"]["router"] / 100 / rate * 1e6,
        "server_us": server_percent / 100 / rate * 1e6,
    }


def _cpu_s(server: PostgresServer | None) -> float:
    """CPU time of a server's processes, which live as long as the router's connections."""
    total = 0.0
    for process in server.processes() if server else ():
        try:
            times = process.cpu_times()
        except psutil.NoSuchProcess:
            continue
        total += times.user + times.system
    return total


def _errors(repeats: list[Figures]) -> Figures:
    return {
        name: totals([repeat[name] for repeat in repeats])
        for name in ("wrong", "faults")
        if name in repeats[0]
    }


def _tracebacks(engines: dict[str, _Engine]) -> dict[str, int]:
    return {
        f"{name} {who}": count
        for name, engine in engines.items()
        for who, count in engine.bed.tracebacks().items()
    }
