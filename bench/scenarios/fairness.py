"""Fairness: effect on a tenant of another one that sends ten times its quota."""

import time
from typing import Any

from bench.aggregate import medians, totals
from bench.loadgen.chat_frames import JSON
from bench.processes import Child, Testbed, tenant_toml, testbed
from bench.resource_usage import measure_cpu
from bench.scale import Figures, Scale, Step
from bench.scenarios.quiet_tenant import QUIET, RATE_PER_S, connect_clients

LOUD = "loud"
QUOTA_PER_S, TIMES = 500, 10
LOUD_CLIENTS, CALLS_AT_A_TIME = 100, 100
LEAD_S, REST_S = 1.0, 1.5
"""Time before each measurement for the loud tenant to empty its buckets, and after it for them to refill."""
PHASES = {"alone": 0, "at_quota": 1, "tenfold": TIMES}
"""Rate of the loud tenant, as a multiple of its quota."""
WAYS: dict[str, dict[str, Any]] = {
    "websocket": {
        "endpoint": {
            "target": f"/v1/connect?tenant={LOUD}&agent=a&platform=web&conversation=person:{{n}}&user=u{{n}}",
            "subprotocol": JSON,
            "waits_for_frame": True,
        },
        "clients": LOUD_CLIENTS,
    },
    "unary": {"tenant": LOUD, "at_a_time": CALLS_AT_A_TIME},
    "many": {"tenant": LOUD},
}
"""Methods by which the loud tenant sends, with the arguments of the load generator."""


def steps(scale: Scale) -> int:
    """Return the number of times that `run` calls `step`."""
    return len(WAYS) * len(PHASES) * scale.fairness_rounds


def run(scale: Scale, step: Step) -> Figures:
    """Measure two tenants on one router and edge; phases alternate so that all see the same machine state."""
    with testbed() as bed:
        neighbours, flooders = _start(bed)
        measured: dict[str, dict[str, list[Figures]]] = {way: {phase: [] for phase in PHASES} for way in WAYS}
        neighbours.call("talk", "talked", 60, rate=RATE_PER_S, seconds=scale.phase_s)
        for _ in range(scale.fairness_rounds):
            for way in WAYS:
                for phase in PHASES:
                    step(f"{way}, {phase.replace('_', ' ')}")
                    measured[way][phase].append(_phase(bed, neighbours, flooders, way, phase, scale))
        found = {
            way: {phase: _together(repeats) for phase, repeats in phases.items()}
            for way, phases in measured.items()
        }
        return {
            "quota_per_s": QUOTA_PER_S,
            "times": TIMES,
            "quiet_per_s": RATE_PER_S,
            **found,
            "tracebacks": bed.tracebacks(),
        }


def _start(bed: Testbed) -> tuple[Child, Child]:
    """Start both tenants' load generators and connect the quiet tenant's clients."""
    router_port, edge_port = bed.bridge(
        tenant_toml(QUIET) + tenant_toml(LOUD, limits=f"messages_per_s = {QUOTA_PER_S}")
    )
    return connect_clients(bed, edge_port), bed.generator("flooders", edge_port, router_port)


def _phase(bed: Testbed, neighbours: Child, flooders: Child, way: str, phase: str, scale: Scale) -> Figures:
    """Measure one phase; `alone` takes as long as the others."""
    rate, seconds = PHASES[phase] * QUOTA_PER_S, scale.fairness_s + LEAD_S
    if rate:
        flooders.send(f"by_{way}", rate=rate, seconds=seconds, lead_s=LEAD_S, **WAYS[way])
    time.sleep(LEAD_S)
    with measure_cpu(bed.children) as cpu:
        talked = neighbours.call("talk", "talked", 60, rate=RATE_PER_S, seconds=scale.fairness_s)
    found = {name: talked[name] for name in ("acked", "heard", "wrong", "faults")}
    found["cpu_percent"] = cpu
    if rate:
        found["loud"] = flooders.wait_for("offered_per_s", seconds + 30)
    time.sleep(REST_S)
    return found


def _together(repeats: list[Figures]) -> Figures:
    """Return medians, and the p99 of each repeat to show their spread."""
    sums = {name: totals([repeat[name] for repeat in repeats]) for name in ("wrong", "faults")}
    each = {name: [repeat[name]["p99_ms"] for repeat in repeats] for name in ("acked", "heard")}
    return {**medians(repeats), **sums, "p99_ms_of_each": each}
