"""Caveats for readers of the results: saturated load generators, disturbances and errors."""

from collections.abc import Iterator

from bench.scale import Figures

GENERATORS = (
    "listeners",
    "publisher",
    "talkers",
    "posters",
    "producer",
    "followers",
    "resumers",
    "neighbours",
)
GENERATOR_LIMIT_PERCENT = 85.0
"""Generators are single-threaded: at this share of a core a generator is considered saturated."""
DISTURBED_PERCENT = 20.0


def caveats(results: dict[str, Figures]) -> list[str]:
    """Return one sentence per caveat; empty if there were no errors on a quiet machine."""
    found, disturbed, phases = [], [], 0
    for scenario, figures in results.items():
        for path, phase in _phases(figures, scenario):
            found += [f"{path}: {fact}" for fact in _facts(phase)]
            others = phase.get("cpu_percent", {}).get("others", 0.0)
            phases += 1
            if others >= DISTURBED_PERCENT:
                disturbed.append((others, path))
    if disturbed:
        most, path = max(disturbed)
        found.append(
            f"the machine was busy: other processes used at least {DISTURBED_PERCENT:.0f} % of a core in "
            f"{len(disturbed)} of {phases} phases, {most:.0f} % in {path}"
        )
    return found


def _facts(phase: Figures) -> Iterator[str]:
    for who in GENERATORS:
        used = phase.get("cpu_percent", {}).get(who, 0.0)
        if used >= GENERATOR_LIMIT_PERCENT:
            yield f"the load generator ({who}) used {used:.0f} % of a core"
    for fault, count in phase.get("faults", {}).items():
        yield f"{fault}: {count:g} ×"
    for what, count in phase.get("wrong", {}).items():
        if count and what != "faults":
            yield f"{what.replace('_', ' ')}: {count:g}"
    if phase.get("refused"):
        yield f"rejected: {phase['refused']:g}"
    for who, count in phase.get("tracebacks", {}).items():
        yield f"tracebacks on the stderr of {who}: {count}"


def _phases(figures: Figures, path: str) -> Iterator[tuple[str, Figures]]:
    """Yield each phase with its name."""
    if "cpu_percent" in figures or "tracebacks" in figures:
        yield path, figures
    for name, value in figures.items():
        if name == "points":
            for point in value:
                rate = f"{point['rate']:,}/s" if point["rate"] else "flat out"
                yield f"{path}, {rate}", point
        elif isinstance(value, dict):
            yield from _phases(value, f"{path}, {name}")
