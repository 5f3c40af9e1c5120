"""Aggregation of repeats: medians of figures, and sums of error counts."""

import statistics
from collections.abc import Sequence
from typing import Any

from bench.scale import Figures


def medians(repeats: Sequence[Figures]) -> Figures:
    """Return the median of each figure that all repeats contain; figures may be nested."""
    shared = [name for name in repeats[0] if all(name in repeat for repeat in repeats)]
    return {name: _median([repeat[name] for repeat in repeats]) for name in shared}


def _median(values: Sequence[Any]) -> Any:
    if isinstance(values[0], dict):
        return medians(values)
    if isinstance(values[0], int | float):
        return statistics.median(values)
    return values[0]


def totals(repeats: Sequence[dict[str, int]]) -> dict[str, int]:
    """Return the sums that are not zero; empty if there were no errors."""
    names = {name for repeat in repeats for name in repeat}
    summed = {name: sum(repeat.get(name, 0) for repeat in repeats) for name in sorted(names)}
    return {name: total for name, total in summed.items() if total}
