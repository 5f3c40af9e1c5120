"""Report of the results: a table for the terminal, and Markdown."""

from collections.abc import Iterable
from typing import Any

from rich.table import Table

from bench.caveats import caveats
from bench.goals import Row, p99_ratio, rows, worse_p99_ms
from bench.scale import Figures
from bench.systems import BRIDGES, STREAMING_BASELINES, SYSTEMS

HEADINGS = ("measured", "Trunkline", "FastAPI", "bare library", "× FastAPI", "goal", "")


def _number(value: float | None, unit: str) -> str:
    if value is None:
        return "–"
    number = f"{value:,.0f}" if value >= 100 or value == int(value) else f"{value:,.2f}"
    return f"{number} {unit}".strip()


def _cells(row: Row) -> list[str]:
    verdict = "" if row.met is None else ("met" if row.met else "missed")
    times = f"{row.times:.2g}" if row.times and row.times < 10 else f"{row.times:.0f}" if row.times else "–"
    values = [_number(value, row.unit) for value in (row.bridge, row.fastapi, row.bare)]
    return [row.label, *values, times, row.goal, verdict]


def table(found: list[Row]) -> Table:
    """Return the table for the terminal."""
    result = Table(*HEADINGS, title="Trunkline and its baselines, measured in the same run")
    for row in found:
        cells = _cells(row)
        colour = {"met": "green", "missed": "red"}.get(cells[-1], "")
        result.add_row(*cells[:-1], f"[{colour}]{cells[-1]}" if colour else "")
    return result


def _markdown_table(headings: Iterable[str], lines: Iterable[Iterable[str]]) -> list[str]:
    head = list(headings)
    ruler = ["---"] + ["---:"] * (len(head) - 1)
    return [f"| {' | '.join(cells)} |" for cells in (head, ruler, *lines)]


def markdown(loaded: dict[str, Any], results: dict[str, Figures]) -> str:
    """Return the whole report; `loaded` maps scenarios to their result files, `results` to their figures."""
    text = ["# Benchmark results", "", *_machines(loaded), ""]
    text += _markdown_table(HEADINGS, map(_cells, rows(results)))
    text += ["", "[bench/README.md](../README.md) describes the scenarios and the method.", ""]
    if "fanout" in results:
        text += ["![fan-out and ratios](latest.svg)", "", "## Fan-out", "", *_fanout(results["fanout"]), ""]
    if "roundtrip" in results:
        text += ["## Round trip", "", *_roundtrip(results["roundtrip"]), ""]
    if "publish" in results:
        text += ["## Durable publish", "", *_publish(results["publish"]), ""]
    if "streams" in results:
        text += ["## Streamed replies", "", *_streams(results["streams"]), ""]
    if "fairness" in results:
        text += ["## Fairness", "", *_fairness(results["fairness"]), ""]
    if "attacks" in results:
        text += ["## Attacks", "", *_attacks(results["attacks"]), ""]
    if "postgres" in results:
        text += ["## PostgreSQL beside SQLite", "", *_postgres(results["postgres"]), ""]
    if found := caveats(results):
        text += ["## Caveats", "", *[f"- {caveat}" for caveat in found], ""]
    return "\n".join(text)


def _machines(loaded: dict[str, Any]) -> list[str]:
    """List the machines, and the time and machine of each scenario."""
    lines: list[str] = []
    described: list[str] = []
    for name, run in loaded.items():
        host, scale = run["machine"], run["scale"]
        libraries = ", ".join(f"{library} {version}" for library, version in host["libraries"].items())
        machine = (
            f"{host['cpu']}, {host['cores']} cores shared by all processes and load generators, "
            f"{host['memory_gib']:g} GiB, {host['kernel']}, Python {host['python']}, "
            f"SQLite {host['sqlite']}, {libraries}"
        )
        if machine not in described:
            described.append(machine)
        lines.append(
            f"- {name}: {host['date']}, machine {described.index(machine) + 1}, "
            f"{host['fsync_us']} µs per fsync, {_repeats(name, scale)}"
        )
    return [*(f"Machine {number}: {text}.\n" for number, text in enumerate(described, 1)), *lines]


def _repeats(name: str, scale: dict[str, Any]) -> str:
    if name == "fairness":
        return f"{scale['fairness_rounds']} rounds of all phases"
    if name == "completions":
        return f"medians of {scale['repeats']} repeats, {scale['attack_rounds']} rounds of the bot's phases"
    if name == "attacks":
        return f"{scale['attack_rounds']} rounds of all phases"
    return f"medians of {scale['repeats']} repeats"


def _latency(latency: dict[str, float]) -> list[str]:
    return [f"{latency[name]:,.2f}" if name in latency else "–" for name in ("p50_ms", "p99_ms", "p99.9_ms")]


def _by_name(values: dict[str, float]) -> str:
    return ", ".join(f"{who} {used:.0f}" for who, used in values.items())


def _fanout(figures: Figures) -> list[str]:
    lines = []
    for system in SYSTEMS:
        for point in figures[system.name]["points"]:
            rate = f"{point['rate']:,}" if point["rate"] else "flat out"
            lines.append(
                [
                    system.label,
                    rate,
                    f"{point['accepted_per_s']:,.0f}" + (" (saturated)" if point["saturated"] else ""),
                    f"{point['delivered_per_s']:,.0f}",
                    f"{point['frame_bytes']:.0f}",
                    *_latency(point["latency"]),
                    _by_name(point["cpu_percent"]),
                ]
            )
    headings = [
        "",
        "offered/s",
        "accepted/s",
        "delivered/s",
        "bytes per frame",
        "p50 ms",
        "p99 ms",
        "p99.9 ms",
    ]
    peaks = "; ".join(
        f"{system.label}: {_by_name(figures[system.name]['peak_rss_mib'])}" for system in SYSTEMS
    )
    rates = _markdown_table([*headings, "CPU, % of a core"], lines)
    return [*rates, "", f"Peak resident memory in MiB: {peaks}."]


def _roundtrip(figures: Figures) -> list[str]:
    lines = [
        [
            f"{system.label}, {clients} clients",
            phase.replace("_", " "),
            f"{found['per_s']:,.0f}",
            *_latency(found["latency"]),
            _by_name(found["cpu_percent"]),
        ]
        for system in SYSTEMS
        for clients, phases in figures[system.name].items()
        if clients != "tracebacks"
        for phase, found in phases.items()
    ]
    headings = ["", "loop", "round trips/s", "p50 ms", "p99 ms", "p99.9 ms", "CPU, % of a core"]
    return _markdown_table(headings, lines)


def _publish(figures: Figures) -> list[str]:
    labels = {
        "many": "BroadcastMany",
        "many_with_keys": "BroadcastMany, idempotency keys",
        "unary": "Broadcast, 100 at a time",
        "fastapi": "FastAPI POST, one commit per row, 100 at a time",
        "sqlite": "sqlite3 in a loop, one commit per row",
    }
    lines = [
        [label, f"{figures[name]['accepted_per_s']:,.0f}", *_latency(figures[name].get("latency", {}))]
        for name, label in labels.items()
    ]
    return _markdown_table(["", "messages/s", "p50 ms", "p99 ms", "p99.9 ms"], lines)


def _streams(figures: Figures) -> list[str]:
    phases = [
        (f"{system.label}, roll-up {name.partition('_')[2]} ms", phase)
        for system in BRIDGES
        for name, phase in figures[system.name].items()
        if name.startswith("rollup_")
    ]
    phases += [(system.label, figures[system.name]["streams"]) for system in STREAMING_BASELINES]
    lines = [
        [
            label,
            f"{phase['handed_share']:.0%}",
            f"{phase['frames_per_s']:,.0f}",
            f"{phase['bytes_per_byte']:.2f}",
            f"{phase['bytes_per_byte_with_ends']:.2f}",
            *(_delays(phase[who]["latency"]) for who in ("one", "many")),
            *(_delays(phase[who]["latency_from_due"]) for who in ("one", "many")),
            _by_name(phase["cpu_percent"]),
        ]
        for label, phase in phases
    ]
    method = (
        f"{figures['replies']:,} replies to one listener each and one to {figures['listeners']:,}, "
        f"with {figures['deltas_per_s']} deltas of 20 bytes per second in each. "
        "Delays are p50 / p99 / max in ms."
    )
    delays = _markdown_table(
        [
            "",
            "deltas sent in time",
            "frames/s",
            "bytes per byte of text",
            "with opening and end",
            "sent → received, one",
            "group",
            "due → received, one",
            "group",
            "CPU, % of a core",
        ],
        lines,
    )
    resumed = "; ".join(
        f"{system.label}: {_delays(figures[system.name]['resume']['latency'])}" for system in BRIDGES
    )
    size = f"{figures['held_bytes'] // 1024} KiB"
    resume = f"Resume of an unfinished reply of {size}, p50 / p99 / max in ms: {resumed}."
    return [method, "", *delays, "", resume]


def _fairness(figures: Figures) -> list[str]:
    labels = {"websocket": "frames", "unary": "`Broadcast`", "many": "`BroadcastMany`"}
    lines = []
    for way, label in labels.items():
        for phase, found in figures[way].items():
            loud = found.get("loud", {})
            rates = [loud.get(f"{name}_per_s") for name in ("offered", "through", "limited")]
            ratio = "" if phase == "alone" else f"{p99_ratio(figures[way], phase):.2f}"
            lines.append(
                [
                    f"{label}, {phase.replace('_', ' ')}",
                    *(_middle(found[delay]) for delay in ("acked", "heard")),
                    ratio,
                    " / ".join(f"{each:.1f}" for each in found["p99_ms_of_each"]["heard"]),
                    *("–" if rate is None else f"{rate:,.0f}" for rate in rates),
                    _by_name(found["cpu_percent"]),
                ]
            )
    method = (
        f"One tenant sends {figures['quiet_per_s']:,.0f} messages per second. The other has a quota of "
        f"{figures['quota_per_s']:,} and sends nothing, its quota, or {figures['times']} times its quota. "
        "Delays are p50 / p99 in ms, from when a message was due."
    )
    headings = [
        "the other tenant",
        "due → ack",
        "due → received",
        "p99, ratio to alone",
        "p99 of each repeat",
        "offered/s",
        "accepted/s",
        "rejected/s",
        "CPU, % of a core",
    ]
    delays = _markdown_table(headings, lines)
    return [method, "", *delays, "", "![p99 of one tenant beside another](fairness.svg)"]


def _attacks(figures: Figures) -> list[str]:
    calm = worse_p99_ms(figures["phases"]["calm"])
    lines = []
    for phase, found in figures["phases"].items():
        attack = found.get("attack", {})
        lines.append(
            [
                phase,
                *(_middle(found[delay]) for delay in ("acked", "heard")),
                "" if phase == "calm" else f"{worse_p99_ms(found) / calm:.2f}",
                " / ".join(f"{each:.1f}" for each in found["p99_ms_of_each"]),
                f"{attack['sent_mb_per_s']:.1f}" if attack else "–",
                _by_name(found["cpu_percent"]),
            ]
        )
    method = (
        f"One tenant sends {figures['quiet_per_s']:,.0f} messages per second, while one client of another "
        "tenant attacks the edge. Delays are p50 / p99 in ms, from when a message was due."
    )
    headings = [
        "attack",
        "due → ack",
        "due → received",
        "p99, ratio to calm",
        "p99 of each repeat",
        "MB/s taken",
        "CPU, % of a core",
    ]
    return [method, "", *_markdown_table(headings, lines)]


def _postgres(figures: Figures) -> list[str]:
    lines = [
        [
            phase.replace("_", " "),
            {"sqlite": "SQLite", "postgres": "PostgreSQL"}[engine],
            f"{found['per_s']:,.0f}",
            *_latency(found["latency"]),
            f"{found['router_us']:,.0f}",
            f"{found['server_us']:,.0f}" if engine == "postgres" else "–",
            _by_name(found["cpu_percent"]),
        ]
        for phase in figures["sqlite"]
        for engine in ("sqlite", "postgres")
        for found in (figures[engine][phase],)
    ]
    method = (
        "Each engine has a router, an edge and an echo agent of its own, which idle while the other one is "
        "measured. A message in `clients` is a round trip: two messages in two commits."
    )
    headings = [
        "",
        "log",
        "1/s",
        "p50 ms",
        "p99 ms",
        "p99.9 ms",
        "router, µs",
        "server, µs",
        "CPU, % of a core",
    ]
    return [method, "", *_markdown_table(headings, lines)]


def _middle(latency: dict[str, float]) -> str:
    return f"{latency['p50_ms']:,.2f} / {latency['p99_ms']:,.2f}"


def _delays(latency: dict[str, float]) -> str:
    """Format p50, p99 and max; empty if there are no samples."""
    return " / ".join(f"{latency[name]:,.1f}" for name in ("p50_ms", "p99_ms", "max_ms") if name in latency)
