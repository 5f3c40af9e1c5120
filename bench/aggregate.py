"""Puts repeats together: a median of each figure, a sum of everything that must be zero."""

import statistics
from collections.abc import Sequence
from typing import Any

from bench.scale import Figures


def medians(repeats: Sequence[Figures]) -> Figures:
    """The median of each figure that all repeats have; figures may be nested."""
    shared = [name for name in repeats[0] if all(name in repeat for repeat in repeats)]
    return {name: _median([repeat[name] for repeat in repeats]) for name in shared}


def _median(values: Sequence[Any]) -> Any:
    if isinstance(values[0], dict):
        return medians(values)
    if isinstance(values[0], int | float):
        return statistics.median(values)
    return values[0]


def totals(repeats: Sequence[dict[str, int]]) -> dict[str, int]:
    """The sums of what is above zero; empty where all went well."""
    names = {name for repeat in repeats for name in repeat}
    summed = {name: sum(repeat.get(name, 0) for repeat in repeats) for name in sorted(names)}
    return {name: total for name, total in summed.items() if total}
