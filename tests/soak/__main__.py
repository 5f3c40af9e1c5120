"""Run the state machines for a time: `make soak MINUTES=10`; see CONTRIBUTING.md.

Each machine runs in a process of its own, as many at a time as there are cores.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
import traceback
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import Progress, TaskID, TextColumn, TimeElapsedColumn

ROOT = Path(__file__).resolve().parents[2]
#: Failures, one file each.
FAILURES = ROOT / "build" / "soak"
#: A folder in memory, where there is one.
_MEMORY = "/dev/shm"
#: A process that runs one machine starts with this argument.
_CHILD = "--run"

console = Console()


def main(
    minutes: Annotated[float, typer.Option(help="Time for each machine.")] = 10.0,
    seed: Annotated[int, typer.Option(help="First seed, to repeat a run. Default: the time.")] = 0,
    machine: Annotated[str, typer.Option(help="Comma-separated machines. Default: all.")] = "",
) -> None:
    """Run the state machines with random seeds; print the seed and the steps of each failure."""
    from tests.soak.machines import EXAMPLES, MACHINES

    chosen = machine.split(",") if machine else list(MACHINES)
    if unknown := set(chosen) - MACHINES.keys():
        raise typer.BadParameter(
            f"unknown machine: {', '.join(sorted(unknown))}; known: {', '.join(MACHINES)}"
        )
    first = seed or int(time.time()) * 1000
    cores = os.cpu_count() or 1
    rounds = -(-len(chosen) // cores)
    console.print(
        f"{len(chosen)} machines, {minutes:g} minutes each, {rounds * minutes:g} in all; first seed {first}",
        highlight=False,
    )
    columns = [TextColumn("{task.description:<10}"), TextColumn("{task.fields[state]}"), TimeElapsedColumn()]
    with Progress(*columns, console=console) as progress, ThreadPoolExecutor(cores) as pool:
        tasks = {name: progress.add_task(name, start=False, state="waits") for name in chosen}
        runs = {
            name: pool.submit(_run, name, first, minutes * 60, progress, task, EXAMPLES)
            for name, task in tasks.items()
        }
        failures = {name: found for name, run in runs.items() if (found := run.result())}
    for name, found in failures.items():
        console.print(f"[red]{name} failed[/red]", highlight=False)
        # Not wrapped: its lines are code.
        print(found)
    raise typer.Exit(bool(failures))


def _run(name: str, first: int, seconds: float, progress: Progress, task: TaskID, examples: int) -> str:
    """Run one machine in a process of its own. Return its failure; empty for none."""
    progress.start_task(task)
    # Sets of strings must have the same order in each run.
    env = os.environ | {"PYTHONHASHSEED": "0"}
    if os.access(_MEMORY, os.W_OK):
        # The log's machine is about its rows, not the disk, which would take most of its time.
        env.setdefault("TMPDIR", _MEMORY)
    command = [sys.executable, "-m", "tests.soak", _CHILD, name, str(first), str(seconds)]
    output: list[str] = []
    with subprocess.Popen(
        command, cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        assert process.stdout is not None
        last, count = first, 0
        for line in process.stdout:
            if line.startswith("seed "):
                last, count = int(line.split()[1]), count + examples
                state = f"{count:,} examples, seed {last}"
                progress.update(task, state=state)
                if not console.is_terminal and count % (100 * examples) == 0:
                    console.print(f"{name}: {state}", highlight=False)
            else:
                output.append(line)
    failed = process.returncode != 0
    progress.stop_task(task)
    progress.update(task, state=f"{'[red]failed[/red]' if failed else 'passed'}, {count:,} examples")
    if not console.is_terminal:
        console.print(f"{name}: {'failed' if failed else 'passed'}, {count:,} examples", highlight=False)
    if not failed:
        return ""
    failed_seed = last + 1 if count else first
    text = f"Repeat: make soak MACHINE={name} SEED={failed_seed} MINUTES=0\n\n{''.join(output)}"
    FAILURES.mkdir(parents=True, exist_ok=True)
    (FAILURES / f"{name}-{failed_seed}.txt").write_text(text, encoding="utf-8")
    return text


def run_machine(name: str, first: int, seconds: float) -> int:
    """Run one machine, seed after seed, until the time is over or a seed fails; at least one seed."""
    from tests.soak.machines import MACHINES

    until = time.monotonic() + seconds
    number = first
    while True:
        try:
            MACHINES[name](number)
        except Exception:
            traceback.print_exc()
            return 1
        print(f"seed {number}", flush=True)
        number += 1
        if time.monotonic() >= until:
            return 0


if __name__ == "__main__":
    if sys.argv[1:2] == [_CHILD]:
        sys.exit(run_machine(sys.argv[2], int(sys.argv[3]), float(sys.argv[4])))
    typer.run(main)
