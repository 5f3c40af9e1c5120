"""Idle connections: resident memory with few and with many, each in a conversation of its own."""

from bench.processes import testbed
from bench.resource_usage import settled_rss
from bench.scale import Figures, Scale, Step
from bench.systems import BRIDGE, FASTAPI, WEBSOCKETS, System, start

WARMED_UP_BY = 100
MEASURED = (BRIDGE, FASTAPI, WEBSOCKETS)


def steps(_: Scale) -> int:
    """How often `run` calls its `step`."""
    return len(MEASURED)


def run(scale: Scale, step: Step) -> Figures:
    """Bytes a connection by process: the growth from 100 connections on, so start-up costs are not in it."""
    found: Figures = {"connections": scale.idle}
    for system in MEASURED:
        step(system.label)
        found[system.name] = _system(system, scale.idle)
    return found


def _system(system: System, connections: int) -> Figures:
    with testbed() as on:
        running = start(on, system)
        clients = on.generator("listeners", running.port)
        door = system.person()
        clients.ask("open", "opened", 60, door=door, count=WARMED_UP_BY, at_a_time=50)
        before = {server.name: settled_rss(server) for server in running.servers}
        opened = clients.ask(
            "open", "opened", 120, door=door, count=connections, at_a_time=50, first=WARMED_UP_BY
        )
        after = {server.name: settled_rss(server) for server in running.servers}
        grown = {name: (after[name] - before[name]) / opened["opened"] for name in after}
        return {"bytes_per_connection": grown, "rss_before": before, "refused": opened["refused"]}
