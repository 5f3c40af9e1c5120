"""Round trip: from a client's message to the echo agent's reply."""

from bench.aggregate import medians, totals
from bench.processes import Child, Testbed, testbed
from bench.resource_usage import measure_cpu
from bench.scale import Figures, Scale, Step
from bench.systems import SYSTEMS, System, start

WARM_UP_S = 0.5
OPEN_LOOP_SHARES = (0.5, 0.8)


def steps(scale: Scale) -> int:
    """Return the number of times that `run` calls `step`."""
    return len(SYSTEMS) * len(scale.clients) * (scale.repeats + len(OPEN_LOOP_SHARES))


def run(scale: Scale, step: Step) -> Figures:
    """Measure all systems. Trunkline commits message and reply; the baselines store nothing."""
    return {system.name: _system(system, scale, step) for system in SYSTEMS}


def _system(system: System, scale: Scale, step: Step) -> Figures:
    with testbed() as bed:
        running = start(bed, system)
        if running.router_port:
            worker = bed.start(
                "worker", "examples/echo_agent.py", "--router", f"127.0.0.1:{running.router_port}"
            )
            worker.wait_for("printed", 20)
        talkers = bed.generator("talkers", running.port)
        found: Figures = {}
        connected = 0
        for clients in scale.clients:
            opened = talkers.call("open", "opened", 60, endpoint=system.echo(), count=clients - connected)
            connected += opened["opened"]
            if connected != clients:
                raise RuntimeError(f"{system.label}: {opened}")
            found[str(clients)] = _clients(system, bed, talkers, clients, scale, step)
        return {**found, "tracebacks": bed.tracebacks()}


def _clients(system: System, bed: Testbed, talkers: Child, clients: int, scale: Scale, step: Step) -> Figures:
    """Measure the closed-loop rate with one message in flight per client, then open loops below that rate."""
    talkers.call("closed_loop", "answered", 30, seconds=WARM_UP_S)
    repeats = []
    for _ in range(scale.repeats):
        step(f"{system.label}, {clients} clients, closed loop")
        repeats.append(measured(bed, talkers, "closed_loop", seconds=scale.phase_s))
    sums = {name: totals([repeat[name] for repeat in repeats]) for name in ("wrong", "faults")}
    closed = {**medians(repeats), **sums}
    found: Figures = {"closed": closed}
    for share in OPEN_LOOP_SHARES:
        rate = closed["per_s"] * share
        step(f"{system.label}, {clients} clients, {rate:,.0f}/s")
        found[f"open_{share:.0%}"] = measured(bed, talkers, "open_loop", rate=rate, seconds=scale.phase_s)
    return found


def measured(bed: Testbed, talkers: Child, do: str, **arguments: float) -> Figures:
    """Run a loop of the talkers until it ends."""
    with measure_cpu(bed.children) as cpu:
        done = talkers.call(do, "answered", 60, **arguments)
    return {
        "per_s": done["answered"] / done["elapsed_s"],
        "latency": done["latency"],
        "cpu_percent": cpu,
        "wrong": {"unanswered": done["unanswered"], "faults": sum(done["faults"].values())},
        "faults": done["faults"],
    }
