"""Connects: WebSockets opened per second, each to a separate conversation."""

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
"""Signature algorithms of the clients' tokens."""


def steps(scale: Scale) -> int:
    """Return the number of times that `run` calls `step`."""
    return scale.repeats * (len(MEASURED) + len(ALGORITHMS))


def run(scale: Scale, step: Step) -> Figures:
    """Measure all systems. A connection counts on its `connected` frame; in a baseline, on the upgrade."""
    found = {system.name: _system(system, scale, step) for system in MEASURED}
    with_tokens = _with_tokens(scale, step)
    return {"connects": scale.connects, "at_a_time": AT_A_TIME, **found, "bridge_tokens": with_tokens}


def _system(system: System, scale: Scale, step: Step) -> Figures:
    repeats = []
    with testbed() as bed:
        running = start(bed, system)
        clients = bed.generator("listeners", running.port)
        for _ in range(scale.repeats):
            step(system.label)
            repeats.append(_measured(bed, clients, system.person(), scale))
        return {**medians(repeats), "tracebacks": bed.tracebacks()}


def _with_tokens(scale: Scale, step: Step) -> Figures:
    """Measure connects with a separate token for each client; repeats alternate between the algorithms."""
    keys = {algorithm: new_key(algorithm) for algorithm in ALGORITHMS}
    tables = [
        f"[[tenants.{TENANT}.keys]]\nkid = '{name}'\nalgorithm = '{name}'\njwk = '{public}'\n"
        for name, (_, public) in keys.items()
    ]
    with testbed() as bed:
        running = start(bed, BRIDGE, tenant_toml(TENANT, more="".join(tables)))
        clients = bed.generator("listeners", running.port)
        repeats: dict[str, list[Figures]] = {algorithm: [] for algorithm in ALGORITHMS}
        for _ in range(scale.repeats):
            for algorithm, (private, _) in keys.items():
                step(f"{BRIDGE.label}, {algorithm} tokens")
                endpoint = BRIDGE.person_with_token(
                    {"tenant": TENANT, "algorithm": algorithm, "jwk": private}
                )
                repeats[algorithm].append(_measured(bed, clients, endpoint, scale))
        return {**{name: medians(found) for name, found in repeats.items()}, "tracebacks": bed.tracebacks()}


def _measured(bed: Testbed, clients: Child, endpoint: dict[str, Any], scale: Scale) -> Figures:
    with measure_cpu(bed.children) as cpu:
        opened = clients.call(
            "open", "opened", 60, endpoint=endpoint, count=scale.connects, at_a_time=AT_A_TIME
        )
    clients.call("close", "closed", 30)
    return {
        "connects_per_s": opened["opened"] / opened["elapsed_s"],
        "refused": opened["refused"],
        "refusals": opened["refusals"],
        "latency": opened["latency"],
        "cpu_percent": cpu,
    }
