"""Idle connections: resident memory with few and with many, each in a separate conversation."""

from bench.processes import testbed
from bench.resource_usage import settled_rss
from bench.scale import Figures, Scale, Step
from bench.systems import BRIDGE, FASTAPI, WEBSOCKETS, System, start

WARMED_UP_BY = 100
MEASURED = (BRIDGE, FASTAPI, WEBSOCKETS)


def steps(_: Scale) -> int:
    """Return the number of times that `run` calls `step`."""
    return len(MEASURED)


def run(scale: Scale, step: Step) -> Figures:
    """Measure bytes per connection and process, as growth after 100 connections to exclude start-up costs."""
    found: Figures = {"connections": scale.idle}
    for system in MEASURED:
        step(system.label)
        found[system.name] = _system(system, scale.idle)
    return found


def _system(system: System, connections: int) -> Figures:
    with testbed() as bed:
        running = start(bed, system)
        clients = bed.generator("listeners", running.port)
        endpoint = system.person()
        clients.call("open", "opened", 60, endpoint=endpoint, count=WARMED_UP_BY, at_a_time=50)
        before = {server.name: settled_rss(server) for server in running.servers}
        opened = clients.call(
            "open", "opened", 120, endpoint=endpoint, count=connections, at_a_time=50, first=WARMED_UP_BY
        )
        after = {server.name: settled_rss(server) for server in running.servers}
        grown = {name: (after[name] - before[name]) / opened["opened"] for name in after}
        return {"bytes_per_connection": grown, "rss_before": before, "refused": opened["refused"]}
