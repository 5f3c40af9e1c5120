"""Fairness: what a tenant notices of another one that offers ten times what it may send."""

import time
from typing import Any

from bench.aggregate import medians, totals
from bench.loadgen.chat_frames import JSON
from bench.processes import Child, Testbed, tenant_toml, testbed
from bench.resource_usage import measure_cpu
from bench.scale import Figures, Scale, Step

QUIET, LOUD = "quiet", "loud"
CLIENTS, SAID_EVERY_S = 50, 0.5
"""The quiet tenant's: two to a conversation, each says something that often."""
QUOTA_PER_S, TIMES = 500, 10
LOUD_CLIENTS, CALLS_AT_A_TIME = 100, 100
LEAD_S, REST_S = 1.0, 1.5
"""Before the quiet tenant is measured the loud one's buckets run empty; after it they fill up again."""
PHASES = {"alone": 0, "at_quota": 1, "tenfold": TIMES}
"""How many times its quota the loud tenant offers."""
WAYS: dict[str, dict[str, Any]] = {
    "websocket": {
        "door": {
            "target": f"/v1/connect?tenant={LOUD}&agent=a&platform=web&conversation=person:{{n}}&user=u{{n}}",
            "subprotocol": JSON,
            "greeted": True,
        },
        "clients": LOUD_CLIENTS,
    },
    "unary": {"tenant": LOUD, "at_a_time": CALLS_AT_A_TIME},
    "many": {"tenant": LOUD},
}
"""How the loud tenant sends, with what the load generator needs for it."""


def steps(scale: Scale) -> int:
    """How often `run` calls its `step`."""
    return len(WAYS) * len(PHASES) * scale.fairness_rounds


def run(scale: Scale, step: Step) -> Figures:
    """Both tenants share a router and an edge; the phases take turns, so that each sees the same machine."""
    with testbed() as on:
        neighbours, flooders = _start(on)
        measured: dict[str, dict[str, list[Figures]]] = {way: {phase: [] for phase in PHASES} for way in WAYS}
        neighbours.ask("talk", "talked", 60, rate=_rate(), seconds=scale.phase_s)
        for _ in range(scale.fairness_rounds):
            for way in WAYS:
                for phase in PHASES:
                    step(f"{way}, {phase.replace('_', ' ')}")
                    measured[way][phase].append(_phase(on, neighbours, flooders, way, phase, scale))
        found = {
            way: {phase: _together(repeats) for phase, repeats in phases.items()}
            for way, phases in measured.items()
        }
        return {
            "quota_per_s": QUOTA_PER_S,
            "times": TIMES,
            "quiet_per_s": _rate(),
            **found,
            "tracebacks": on.tracebacks(),
        }


def _start(on: Testbed) -> tuple[Child, Child]:
    """The quiet tenant's clients, and whatever the loud one sends with."""
    router_port, edge_port = on.bridge(
        tenant_toml(QUIET) + tenant_toml(LOUD, limits=f"messages_per_s = {QUOTA_PER_S}")
    )
    neighbours = on.generator("neighbours", edge_port)
    door = {
        "target": f"/v1/connect?tenant={QUIET}&agent=a&platform=web&conversation=group:{{pair}}&user=u{{n}}",
        "subprotocol": JSON,
        "greeted": True,
    }
    opened = neighbours.ask("open", "opened", 60, door=door, count=CLIENTS)
    if opened["opened"] != CLIENTS:
        raise RuntimeError(f"{opened}")
    return neighbours, on.generator("flooders", edge_port, router_port)


def _rate() -> float:
    return CLIENTS / SAID_EVERY_S


def _phase(on: Testbed, neighbours: Child, flooders: Child, way: str, phase: str, scale: Scale) -> Figures:
    """One turn. Alone takes as long as the others."""
    rate, seconds = PHASES[phase] * QUOTA_PER_S, scale.fairness_s + LEAD_S
    if rate:
        flooders.tell(f"by_{way}", rate=rate, seconds=seconds, lead_s=LEAD_S, **WAYS[way])
    time.sleep(LEAD_S)
    with measure_cpu(on.children) as cpu:
        talked = neighbours.ask("talk", "talked", 60, rate=_rate(), seconds=scale.fairness_s)
    found = {name: talked[name] for name in ("acked", "heard", "wrong", "faults")}
    found["cpu_percent"] = cpu
    if rate:
        found["loud"] = flooders.hear("offered_per_s", seconds + 30)
    time.sleep(REST_S)
    return found


def _together(repeats: list[Figures]) -> Figures:
    """Medians; beside them the p99 of each repeat, as that shows what they are worth."""
    sums = {name: totals([repeat[name] for repeat in repeats]) for name in ("wrong", "faults")}
    each = {name: [repeat[name]["p99_ms"] for repeat in repeats] for name in ("acked", "heard")}
    return {**medians(repeats), **sums, "p99_ms_of_each": each}
