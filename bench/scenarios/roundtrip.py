"""Round trip: a client says something, an echo worker answers, the client has the answer."""

from bench.aggregate import medians, totals
from bench.processes import Child, Testbed, testbed
from bench.resource_usage import measure_cpu
from bench.scale import Figures, Scale, Step
from bench.systems import SYSTEMS, System, start

WARM_UP_S = 0.5
OPEN_LOOP_SHARES = (0.5, 0.8)


def steps(scale: Scale) -> int:
    """How often `run` calls its `step`."""
    return len(SYSTEMS) * len(scale.clients) * (scale.repeats + len(OPEN_LOOP_SHARES))


def run(scale: Scale, step: Step) -> Figures:
    """Measures all systems; in the bridge every message is committed both ways, in the others none is."""
    return {system.name: _system(system, scale, step) for system in SYSTEMS}


def _system(system: System, scale: Scale, step: Step) -> Figures:
    with testbed() as on:
        running = start(on, system)
        if running.router_port:
            worker = on.start(
                "worker", "examples/echo_agent.py", "--router", f"127.0.0.1:{running.router_port}"
            )
            worker.hear("printed", 20)
        talkers = on.generator("talkers", running.port)
        found: Figures = {}
        connected = 0
        for clients in scale.clients:
            opened = talkers.ask("open", "opened", 60, door=system.echo(), count=clients - connected)
            connected += opened["opened"]
            if connected != clients:
                raise RuntimeError(f"{system.label}: {opened}")
            found[str(clients)] = _clients(system, on, talkers, clients, scale, step)
        return {**found, "tracebacks": on.tracebacks()}


def _clients(system: System, on: Testbed, talkers: Child, clients: int, scale: Scale, step: Step) -> Figures:
    """The highest rate with one message of each client under way, then open loops below it."""
    talkers.ask("closed_loop", "answered", 30, seconds=WARM_UP_S)
    repeats = []
    for _ in range(scale.repeats):
        step(f"{system.label}, {clients} clients, closed loop")
        repeats.append(_measured(on, talkers, "closed_loop", seconds=scale.phase_s))
    sums = {name: totals([repeat[name] for repeat in repeats]) for name in ("wrong", "faults")}
    closed = {**medians(repeats), **sums}
    found: Figures = {"closed": closed}
    for share in OPEN_LOOP_SHARES:
        rate = closed["per_s"] * share
        step(f"{system.label}, {clients} clients, {rate:,.0f}/s")
        found[f"open_{share:.0%}"] = _measured(on, talkers, "open_loop", rate=rate, seconds=scale.phase_s)
    return found


def _measured(on: Testbed, talkers: Child, do: str, **arguments: float) -> Figures:
    with measure_cpu(on.children) as cpu:
        done = talkers.ask(do, "answered", 60, **arguments)
    return {
        "per_s": done["answered"] / done["elapsed_s"],
        "latency": done["latency"],
        "cpu_percent": cpu,
        "wrong": {"unanswered": done["unanswered"], "faults": sum(done["faults"].values())},
        "faults": done["faults"],
    }
