"""Attacks: effect on a tenant of one client of another tenant that sends hostile input."""

import time

from bench.aggregate import medians, totals
from bench.loadgen.hostile_input import ATTACKS
from bench.processes import Child, Testbed, tenant_toml, testbed
from bench.resource_usage import measure_cpu
from bench.scale import Figures, Scale, Step
from bench.scenarios.quiet_tenant import QUIET, RATE_PER_S, connect_clients

HOSTILE = "hostile"
LEAD_S, REST_S = 0.5, 2.0
"""Time before each measurement for the attack to begin, and after it for the servers to finish."""
CALM = "calm"
PATIENCE_S = 180.0


def steps(scale: Scale) -> int:
    """Return the number of times that `run` calls `step`."""
    return (1 + len(ATTACKS)) * scale.attack_rounds


def run(scale: Scale, step: Step) -> Figures:
    """Measure the quiet tenant calm and under each attack, alternating."""
    with testbed() as bed:
        neighbours, attackers = _start(bed)
        measured: dict[str, list[Figures]] = {phase: [] for phase in (CALM, *ATTACKS)}
        neighbours.call("talk", "talked", PATIENCE_S, rate=RATE_PER_S, seconds=scale.phase_s)
        for _ in range(scale.attack_rounds):
            for phase, repeats in measured.items():
                step(phase)
                repeats.append(_phase(bed, neighbours, attackers, phase, scale))
        return {
            "quiet_per_s": RATE_PER_S,
            "phases": {phase: _together(repeats) for phase, repeats in measured.items()},
            "tracebacks": bed.tracebacks(),
        }


def _start(bed: Testbed) -> tuple[Child, Child]:
    """Start both tenants' load generators; the hostile tenant has the default limits."""
    _, edge_port = bed.bridge(tenant_toml(QUIET) + tenant_toml(HOSTILE, limits=""))
    return connect_clients(bed, edge_port), bed.generator("attackers", edge_port)


def _phase(bed: Testbed, neighbours: Child, attackers: Child, phase: str, scale: Scale) -> Figures:
    """Measure one phase; the calm one takes as long as the others."""
    if phase != CALM:
        target = f"/v1/connect?tenant={HOSTILE}&agent=a&platform=web&conversation=person:m&user=m"
        seconds = scale.attack_s + LEAD_S
        attackers.send("attack", name=phase, tenant=HOSTILE, target=target, seconds=seconds)
    time.sleep(LEAD_S)
    with measure_cpu(bed.children) as cpu:
        talked = neighbours.call("talk", "talked", PATIENCE_S, rate=RATE_PER_S, seconds=scale.attack_s)
    found = {name: talked[name] for name in ("acked", "heard", "wrong", "faults")}
    found["cpu_percent"] = cpu
    if phase != CALM:
        found["attack"] = attackers.wait_for("attacked_s", PATIENCE_S)
    time.sleep(REST_S)
    return found


def _together(repeats: list[Figures]) -> Figures:
    """Return medians, and the p99 of each repeat to show their spread."""
    sums = {name: totals([repeat[name] for repeat in repeats]) for name in ("wrong", "faults")}
    return {**medians(repeats), **sums, "p99_ms_of_each": [repeat["heard"]["p99_ms"] for repeat in repeats]}
