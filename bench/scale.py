"""Sizes and durations of the full and the quick benchmark run."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

Figures = dict[str, Any]
Step = Callable[[str], None]
"""Reports to the progress display that the next step of a scenario begins."""


@dataclass(frozen=True, slots=True)
class Scale:
    """Sizes and durations of all scenarios. A rate of None means as fast as possible."""

    repeats: int = 3
    phase_s: float = 3.0
    subscribers: int = 1000
    bridge_rates: tuple[float | None, ...] = (100, 1000, 5000, 20000, None)
    baseline_rates: tuple[float | None, ...] = (100, 1000, None)
    clients: tuple[int, ...] = (1, 50, 500)
    publish_s: float = 5.0
    connects: int = 2000
    idle: int = 5000
    streams: int = 500
    stream_s: float = 8.0
    resumes: int = 200
    fairness_rounds: int = 7
    fairness_s: float = 4.0
    attack_rounds: int = 5
    attack_s: float = 4.0
    calls: int = 500
    completions: int = 1000
    survivors: int = 1000
    relinked: int = 10_000


QUICK = Scale(
    repeats=1,
    phase_s=1.0,
    bridge_rates=(100, 5000, None),
    baseline_rates=(100, None),
    clients=(1, 500),
    publish_s=1.5,
    connects=1000,
    idle=2000,
    stream_s=3.0,
    resumes=50,
    fairness_rounds=2,
    fairness_s=2.0,
    attack_rounds=1,
    attack_s=2.0,
    calls=100,
    completions=300,
    survivors=200,
    relinked=2000,
)
