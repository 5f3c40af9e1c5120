"""Connects: how many WebSockets a second are opened, each to a conversation of its own."""

from typing import Any

from bench.aggregate import medians
from bench.loadgen.token_signer import new_key
from bench.processes import TENANT, Child, Testbed, tenant_toml, testbed
from bench.resource_usage import measure_cpu
from bench.scale import Figures, Scale, Step
from bench.systems import BRIDGE, FASTAPI, WEBSOCKETS, System, start

AT_A_TIME = 100
MEASURED = (BRIDGE, FASTAPI, WEBSOCKETS)
ALGORITHMS = ("HS256", "ES256", "EdDSA")
"""Of the tokens that clients of the bridge show."""


def steps(scale: Scale) -> int:
    """How often `run` calls its `step`."""
    return scale.repeats * (len(MEASURED) + len(ALGORITHMS))


def run(scale: Scale, step: Step) -> Figures:
    """A connection to the bridge counts once its `connected` frame is there, others once upgraded."""
    found = {system.name: _system(system, scale, step) for system in MEASURED}
    with_tokens = _with_tokens(scale, step)
    return {"connects": scale.connects, "at_a_time": AT_A_TIME, **found, "bridge_tokens": with_tokens}


def _system(system: System, scale: Scale, step: Step) -> Figures:
    repeats = []
    with testbed() as on:
        running = start(on, system)
        clients = on.generator("listeners", running.port)
        for _ in range(scale.repeats):
            step(system.label)
            repeats.append(_measured(on, clients, system.person(), scale))
        return {**medians(repeats), "tracebacks": on.tracebacks()}


def _with_tokens(scale: Scale, step: Step) -> Figures:
    """Each client shows a token of its own; by algorithm, which take turns."""
    keys = {algorithm: new_key(algorithm) for algorithm in ALGORITHMS}
    tables = [
        f"[[tenants.{TENANT}.keys]]\nkid = '{name}'\nalgorithm = '{name}'\njwk = '{verifies}'\n"
        for name, (_, verifies) in keys.items()
    ]
    with testbed() as on:
        running = start(on, BRIDGE, tenant_toml(TENANT, more="".join(tables)))
        clients = on.generator("listeners", running.port)
        repeats: dict[str, list[Figures]] = {algorithm: [] for algorithm in ALGORITHMS}
        for _ in range(scale.repeats):
            for algorithm, (signs, _) in keys.items():
                step(f"{BRIDGE.label}, tokens by {algorithm}")
                door = BRIDGE.proven({"tenant": TENANT, "algorithm": algorithm, "jwk": signs})
                repeats[algorithm].append(_measured(on, clients, door, scale))
        return {**{name: medians(found) for name, found in repeats.items()}, "tracebacks": on.tracebacks()}


def _measured(on: Testbed, clients: Child, door: dict[str, Any], scale: Scale) -> Figures:
    with measure_cpu(on.children) as cpu:
        opened = clients.ask("open", "opened", 60, door=door, count=scale.connects, at_a_time=AT_A_TIME)
    clients.ask("close", "closed", 30)
    return {
        "connects_per_s": opened["opened"] / opened["elapsed_s"],
        "refused": opened["refused"],
        "refusals": opened["refusals"],
        "latency": opened["latency"],
        "cpu_percent": cpu,
    }
