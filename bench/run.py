"""Run the benchmarks: `python bench/run.py --only fanout,idle --quick`; see bench/README.md."""

import dataclasses
import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from bench.caveats import caveats
from bench.chart import chart
from bench.fairness_chart import fairness_chart
from bench.goals import rows
from bench.machine import machine
from bench.processes import ROOT, ChildError, Skipped
from bench.report import markdown, table
from bench.scale import QUICK, Figures, Scale
from bench.scenarios import (
    attacks,
    completions,
    connects,
    fairness,
    fanout,
    idle,
    postgres,
    publish,
    roundtrip,
    streams,
    takeover,
)

SCENARIOS: dict[str, Any] = {
    "fanout": fanout,
    "roundtrip": roundtrip,
    "publish": publish,
    "streams": streams,
    "connects": connects,
    "idle": idle,
    "fairness": fairness,
    "attacks": attacks,
    "completions": completions,
    "postgres": postgres,
    "takeover": takeover,
}
RESULTS, QUICK_RESULTS = Path("bench/results"), Path("build/bench")

console = Console()


def main(
    only: Annotated[str, typer.Option(help="Comma-separated scenarios.")] = ",".join(SCENARIOS),
    quick: Annotated[bool, typer.Option(help="Short run with rough figures.")] = False,
    out: Annotated[
        Path | None,
        typer.Option(help=f"Directory for results. Default: {RESULTS}; {QUICK_RESULTS} with --quick."),
    ] = None,
) -> None:
    """Measure Trunkline beside its baselines; print and store the results."""
    chosen = only.split(",")
    if unknown := set(chosen) - SCENARIOS.keys():
        raise typer.BadParameter(f"unknown scenario: {', '.join(sorted(unknown))}")
    folder = ROOT / (out or (QUICK_RESULTS if quick else RESULTS))
    folder.mkdir(parents=True, exist_ok=True)
    failed = _measure(chosen, QUICK if quick else Scale(), folder)
    _report(folder)
    for name, error in failed.items():
        console.print(f"[red]{name} failed:[/red] {error}", highlight=False)
    raise typer.Exit(bool(failed))


def _measure(chosen: list[str], scale: Scale, folder: Path) -> dict[str, Exception]:
    """Run the scenarios and write their figures; return the error of each failed scenario."""
    failed: dict[str, Exception] = {}
    columns = (TextColumn("{task.description:12}"), BarColumn(), TextColumn("{task.fields[now]}"))
    with Progress(*columns, TimeElapsedColumn(), console=console) as progress:
        tasks = {
            name: progress.add_task(name, total=SCENARIOS[name].steps(scale), start=False, now="")
            for name in chosen
        }
        for name, task in tasks.items():
            progress.start_task(task)
            host = machine()
            try:
                figures = SCENARIOS[name].run(scale, _Stepper(progress, task))
            except Skipped as reason:
                progress.update(task, now=f"skipped: {reason}")
                continue
            except (ChildError, RuntimeError, OSError) as error:
                failed[name] = error
                progress.update(task, now="[red]failed")
                continue
            progress.update(task, completed=SCENARIOS[name].steps(scale), now="done")
            written = {"machine": host, "scale": dataclasses.asdict(scale), "figures": figures}
            (folder / f"{name}.json").write_text(json.dumps(written, indent=1) + "\n")
    return failed


class _Stepper:
    """Advances the progress display when the next step begins."""

    def __init__(self, progress: Progress, task: TaskID) -> None:
        self._progress, self._task = progress, task
        self._steps = 0

    def __call__(self, text: str) -> None:
        self._progress.update(self._task, completed=self._steps, now=text)
        self._steps += 1


def _report(folder: Path) -> None:
    """Print and write the tables and charts of all results in the directory."""
    written = {name: folder / f"{name}.json" for name in SCENARIOS}
    loaded = {name: json.loads(path.read_text()) for name, path in written.items() if path.exists()}
    if not loaded:
        return
    results: dict[str, Figures] = {name: run["figures"] for name, run in loaded.items()}
    console.print(table(rows(results)))
    for caveat in caveats(results):
        console.print(f"· {caveat}", highlight=False)
    (folder / "latest.md").write_text(markdown(loaded, results))
    if "fanout" in results:
        (folder / "latest.svg").write_text(chart(results["fanout"], rows(results)))
    if "fairness" in results:
        (folder / "fairness.svg").write_text(fairness_chart(results["fairness"]))


if __name__ == "__main__":
    typer.run(main)
