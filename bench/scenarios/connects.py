"""Connects: how many WebSockets a second are opened, each to a conversation of its own."""

from bench.figures import medians
from bench.processes import stage
from bench.scale import Figures, Scale, Step
from bench.systems import BRIDGE, FASTAPI, WEBSOCKETS, System, start
from bench.usage import cpu_of

AT_A_TIME = 100
MEASURED = (BRIDGE, FASTAPI, WEBSOCKETS)


def steps(scale: Scale) -> int:
    """How often `run` calls its `step`."""
    return scale.repeats * len(MEASURED)


def run(scale: Scale, step: Step) -> Figures:
    """A connection to the bridge counts once its `connected` frame is there, others once upgraded."""
    found = {system.name: _system(system, scale, step) for system in MEASURED}
    return {"connects": scale.connects, "at_a_time": AT_A_TIME, **found}


def _system(system: System, scale: Scale, step: Step) -> Figures:
    repeats = []
    with stage() as on:
        running = start(on, system)
        clients = on.generator("listeners", running.port)
        for _ in range(scale.repeats):
            step(system.label)
            with cpu_of(on.children) as cpu:
                opened = clients.ask(
                    "open", "opened", 60, door=system.person(), count=scale.connects, at_a_time=AT_A_TIME
                )
            clients.ask("close", "closed", 30)
            repeats.append(
                {
                    "connects_per_s": opened["opened"] / opened["elapsed_s"],
                    "refused": opened["refused"],
                    "refusals": opened["refusals"],
                    "latency": opened["latency"],
                    "cpu_percent": cpu,
                }
            )
        return {**medians(repeats), "tracebacks": on.tracebacks()}
