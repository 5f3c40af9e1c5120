"""Run scenarios of faults: `make stress`; see CONTRIBUTING.md.

One after the other: what they test depends on time.
"""

from __future__ import annotations

import time
import traceback
from pathlib import Path
from random import Random
from typing import Annotated

import typer
from rich.console import Console

ROOT = Path(__file__).resolve().parents[2]
#: Failures, one file each.
FAILURES = ROOT / "build" / "stress"

console = Console()


def main(
    seed: Annotated[int, typer.Option(help="Seed, to repeat a run. Default: the time.")] = 0,
    scenario: Annotated[str, typer.Option(help="Comma-separated scenarios. Default: all.")] = "",
    rounds: Annotated[int, typer.Option(help="Rounds of each scenario. Default: its own number.")] = 0,
) -> None:
    """Run scenarios with a random seed; print the seed and the faults of each failure."""
    from tests.stress.scenarios import SCENARIOS
    from tests.support.scratch_folder import use_memory

    use_memory()
    chosen = scenario.split(",") if scenario else list(SCENARIOS)
    if unknown := set(chosen) - SCENARIOS.keys():
        raise typer.BadParameter(
            f"unknown scenario: {', '.join(sorted(unknown))}; known: {', '.join(SCENARIOS)}"
        )
    seed = seed or int(time.time())
    console.print(f"seed {seed}", highlight=False)
    failed = [name for name in chosen if not run_scenario(name, seed, rounds or SCENARIOS[name].rounds)]
    raise typer.Exit(bool(failed))


def run_scenario(name: str, seed: int, rounds: int) -> bool:
    """Run one scenario; report and keep its failure. Returns whether it passed."""
    from tests.stress.scenarios import SCENARIOS, Run

    run = Run(Random(f"{name} {seed}"), rounds, [])
    began = time.monotonic()
    try:
        SCENARIOS[name].run(run)
    except Exception:
        text = (
            f"Repeat: make stress SCENARIO={name} SEED={seed} ROUNDS={rounds}\n\n"
            f"Faults: {', '.join(run.history)}\n\n{traceback.format_exc()}"
        )
        FAILURES.mkdir(parents=True, exist_ok=True)
        (FAILURES / f"{name}-{seed}.txt").write_text(text, encoding="utf-8")
        console.print(f"{name}: [red]failed[/red] after {len(run.history)} faults", highlight=False)
        # Not wrapped: its lines are code.
        print(text)
        return False
    took_s = time.monotonic() - began
    console.print(f"{name}: passed, {len(run.history)} faults in {took_s:.0f} s", highlight=False)
    return True


if __name__ == "__main__":
    typer.run(main)
