"""Durable publish: messages that are committed to disk and answered, with nobody listening."""

from bench.aggregate import medians
from bench.baselines.sqlite_rows import CONVERSATIONS
from bench.processes import Child, Testbed, testbed
from bench.resource_usage import measure_cpu
from bench.scale import Figures, Scale, Step

AT_A_TIME = 100


def steps(scale: Scale) -> int:
    """How often `run` calls its `step`."""
    return scale.repeats * 5


def run(scale: Scale, step: Step) -> Figures:
    """Measures the router alone, FastAPI with SQLite behind a POST, and SQLite in a loop."""
    return {**_router(scale, step), "fastapi": _fastapi(scale, step), "sqlite": _sqlite(scale, step)}


def _router(scale: Scale, step: Step) -> Figures:
    orders: dict[str, tuple[str, Figures]] = {
        "many": ("publish", {"rate": None, "persons": CONVERSATIONS}),
        "many_with_keys": ("publish", {"rate": None, "persons": CONVERSATIONS, "keys": True}),
        "unary": ("publish_unary", {"at_a_time": AT_A_TIME, "persons": CONVERSATIONS}),
    }
    with testbed() as on:
        _, port = on.router()
        publisher = on.generator("publisher", port)
        found: Figures = {}
        for name, (do, arguments) in orders.items():
            repeats = []
            for _ in range(scale.repeats):
                step(f"Trunkline, {name.replace('_', ' ')}")
                repeats.append(_measured(on, publisher, do, {**arguments, "seconds": scale.publish_s}))
            found[name] = medians(repeats)
        return {**found, "tracebacks": on.tracebacks()}


def _fastapi(scale: Scale, step: Step) -> Figures:
    with testbed() as on:
        _, port = on.server("fastapi", "-m", "bench.baselines.fastapi_app", str(on.folder("fastapi")))
        posters = on.generator("posters", port)
        repeats = []
        for _ in range(scale.repeats):
            step("FastAPI POST, one commit a row")
            arguments = {"at_a_time": AT_A_TIME, "seconds": scale.publish_s}
            repeats.append(_measured(on, posters, "post", arguments))
        return medians(repeats)


def _sqlite(scale: Scale, step: Step) -> Figures:
    repeats = []
    for repeat in range(scale.repeats):
        step("sqlite3 in a loop, one commit a row")
        with testbed() as on:
            folder = str(on.folder(f"rows{repeat}"))
            rows = on.start("sqlite", "-m", "bench.baselines.sqlite_rows", folder, str(scale.publish_s))
            done = rows.hear("accepted", scale.publish_s + 20)
            repeats.append({"accepted_per_s": done["accepted"] / done["elapsed_s"]})
    return medians(repeats)


def _measured(on: Testbed, generator: Child, do: str, arguments: Figures) -> Figures:
    with measure_cpu(on.children) as cpu:
        done = generator.ask(do, "accepted", 120, **arguments)
    return {
        "accepted_per_s": done["accepted"] / done["elapsed_s"],
        "refused": sum(done.get("refused", {}).values()),
        "latency": done.get("latency", {}),
        "cpu_percent": cpu,
    }
