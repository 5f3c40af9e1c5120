"""Durable publish: messages committed to disk and acknowledged, without subscribers."""

from bench.aggregate import medians
from bench.baselines.sqlite_rows import CONVERSATIONS
from bench.processes import Child, Testbed, testbed
from bench.resource_usage import measure_cpu
from bench.scale import Figures, Scale, Step

AT_A_TIME = 100
PHASES: dict[str, tuple[str, Figures]] = {
    "many": ("publish", {"rate": None, "persons": CONVERSATIONS}),
    "many_with_keys": ("publish", {"rate": None, "persons": CONVERSATIONS, "keys": True}),
    "unary": ("publish_unary", {"at_a_time": AT_A_TIME, "persons": CONVERSATIONS}),
}
"""Command of the publisher for each phase of the router, and its arguments."""


def steps(scale: Scale) -> int:
    """Return the number of times that `run` calls `step`."""
    return scale.repeats * 5


def run(scale: Scale, step: Step) -> Figures:
    """Measure the router alone, FastAPI with a POST into SQLite, and SQLite in a loop."""
    return {**_router(scale, step), "fastapi": _fastapi(scale, step), "sqlite": _sqlite(scale, step)}


def _router(scale: Scale, step: Step) -> Figures:
    with testbed() as bed:
        _, port = bed.router()
        publisher = bed.generator("publisher", port)
        found: Figures = {}
        for name, (do, arguments) in PHASES.items():
            repeats = []
            for _ in range(scale.repeats):
                step(f"Trunkline, {name.replace('_', ' ')}")
                repeats.append(measured(bed, publisher, do, {**arguments, "seconds": scale.publish_s}))
            found[name] = medians(repeats)
        return {**found, "tracebacks": bed.tracebacks()}


def _fastapi(scale: Scale, step: Step) -> Figures:
    with testbed() as bed:
        _, port = bed.server("fastapi", "-m", "bench.baselines.fastapi_app", str(bed.folder("fastapi")))
        posters = bed.generator("posters", port)
        repeats = []
        for _ in range(scale.repeats):
            step("FastAPI POST, one commit per row")
            arguments = {"at_a_time": AT_A_TIME, "seconds": scale.publish_s}
            repeats.append(measured(bed, posters, "post", arguments))
        return medians(repeats)


def _sqlite(scale: Scale, step: Step) -> Figures:
    repeats = []
    for repeat in range(scale.repeats):
        step("sqlite3 in a loop, one commit per row")
        with testbed() as bed:
            folder = str(bed.folder(f"rows{repeat}"))
            rows = bed.start("sqlite", "-m", "bench.baselines.sqlite_rows", folder, str(scale.publish_s))
            done = rows.wait_for("accepted", scale.publish_s + 20)
            repeats.append({"accepted_per_s": done["accepted"] / done["elapsed_s"]})
    return medians(repeats)


def measured(bed: Testbed, generator: Child, do: str, arguments: Figures) -> Figures:
    """Run a command of a generator until it ends."""
    with measure_cpu(bed.children) as cpu:
        done = generator.call(do, "accepted", 120, **arguments)
    return {
        "accepted_per_s": done["accepted"] / done["elapsed_s"],
        "refused": sum(done.get("refused", {}).values()),
        "latency": done.get("latency", {}),
        "cpu_percent": cpu,
    }
