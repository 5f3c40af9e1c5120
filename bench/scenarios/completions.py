"""Chat completions: first token beside the native socket's, many streams, and a bot that fails."""

from bench.aggregate import medians, totals
from bench.loadgen.answerer import DELTAS_PER_S
from bench.processes import Child, Testbed, tenant_toml, testbed
from bench.resource_usage import measure_cpu
from bench.scale import Figures, Scale, Step
from bench.scenarios.quiet_tenant import QUIET, RATE_PER_S, connect_clients

ASKED_PER_S = 50
PHASES = {"calm": None, "answering": False, "failing": True}
"""Phases of the bot: nobody asks it, it answers, it raises each time."""
PATIENCE_S = 180.0


def steps(scale: Scale) -> int:
    """Return the number of times that `run` calls `step`."""
    return 2 * scale.repeats + len(PHASES) * scale.attack_rounds


def run(scale: Scale, step: Step) -> Figures:
    """Measure all of it, on a fresh log for each part."""
    return {"calls": _calls(scale, step), "bot": _bot(scale, step)}


def _calls(scale: Scale, step: Step) -> Figures:
    with testbed() as bed:
        router_port, edge_port = bed.bridge()
        answerer = bed.generator("answerer", router_port)
        callers = bed.generator("callers", edge_port)
        turns, streams = [], []
        answerer.call("answer", "answering", 10)
        callers.call("call_in_turn", "call", PATIENCE_S, calls=20)
        for _ in range(scale.repeats):
            step("first token")
            answerer.call("answer", "answering", 10)
            turns.append(callers.call("call_in_turn", "call", PATIENCE_S, calls=scale.calls))
            step(f"{scale.completions:,} streams")
            streams.append(_streams(bed, answerer, callers, scale))
        together = {**medians(streams), "wrong": totals([one["wrong"] for one in streams])}
        return {
            "deltas_per_s": DELTAS_PER_S,
            "streams": scale.completions,
            "turns": medians(turns),
            "streamed": together,
            "tracebacks": bed.tracebacks(),
        }


def _streams(bed: Testbed, answerer: Child, callers: Child, scale: Scale) -> Figures:
    """Open all streams, answer them in parallel, and check what was received."""
    count = scale.completions
    answerer.send("stream", count=count, seconds=scale.stream_s)
    answerer.wait_for("awaiting", 10)
    callers.call("open", "opened", PATIENCE_S, count=count)
    callers.send("finish", within_s=scale.stream_s + PATIENCE_S / 2)
    with measure_cpu(bed.children) as cpu:
        sent = answerer.wait_for("digests", PATIENCE_S)
        callers.wait_for("ended", PATIENCE_S)
    digests = sent.pop("digests")
    found = callers.call("check", "checked", PATIENCE_S, digests=digests, start_ns=sent["start_ns"])
    received_s = max(1e-9, (found["last_ns"] - sent["start_ns"]) / 1e9)
    return {
        "offered_per_s": sent["offered"] / scale.stream_s,
        "handed_share": sent["handed"] / max(1, sent["offered"]),
        "delivered_per_s": found["deltas"] / received_s,
        "chunks_per_s": found["chunks"] / received_s,
        "latency": found["latency"],
        "late": sent["late"],
        "cpu_percent": cpu,
        "wrong": {
            **found["wrong"],
            "lost": sent["handed"] - found["deltas"],
            "not_asked": count - sent["asked"],
            "errors": sent["errors"],
            "gone": sum(found["gone"].values()),
        },
    }


def _bot(scale: Scale, step: Step) -> Figures:
    """Measure other conversations of the bot's tenant, alternating between the phases."""
    with testbed() as bed:
        router_port, edge_port = bed.bridge(tenant_toml(QUIET))
        neighbours = connect_clients(bed, edge_port)
        bots = bed.start("bots", "-m", "bench.loadgen.bots", str(router_port), QUIET)
        bots.wait_for("ready", 20)
        measured: dict[str, list[Figures]] = {phase: [] for phase in PHASES}
        neighbours.call("talk", "talked", PATIENCE_S, rate=RATE_PER_S, seconds=scale.phase_s)
        for _ in range(scale.attack_rounds):
            for phase, fails in PHASES.items():
                step(f"bot: {phase}")
                measured[phase].append(_phase(bed, neighbours, bots, fails, scale))
        return {
            "quiet_per_s": RATE_PER_S,
            "asked_per_s": ASKED_PER_S,
            "phases": {phase: _together(repeats) for phase, repeats in measured.items()},
            "tracebacks": {name: count for name, count in bed.tracebacks().items() if name != "bots"},
        }


def _phase(bed: Testbed, neighbours: Child, bots: Child, fails: bool | None, scale: Scale) -> Figures:
    if fails is not None:
        bots.send("ask", rate=ASKED_PER_S, seconds=scale.attack_s, fails=fails)
    with measure_cpu(bed.children) as cpu:
        talked = neighbours.call("talk", "talked", PATIENCE_S, rate=RATE_PER_S, seconds=scale.attack_s)
    found = {name: talked[name] for name in ("acked", "heard", "wrong", "faults")}
    found["cpu_percent"] = cpu
    if fails is not None:
        found["bot"] = bots.wait_for("asked", PATIENCE_S)
    return found


def _together(repeats: list[Figures]) -> Figures:
    sums = {name: totals([repeat[name] for repeat in repeats]) for name in ("wrong", "faults")}
    return {**medians(repeats), **sums, "p99_ms_of_each": [repeat["heard"]["p99_ms"] for repeat in repeats]}
