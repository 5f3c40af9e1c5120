"""The command `migrate`: copies a log to another database. Needs no running router, and allows none."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from trunkline_router.cli.data_commands import DataDir, Json, failures, terminal_bar

if TYPE_CHECKING:
    from trunkline_router.log.migration.copier import CopyReport, Progress

_PLACES = (
    "`sqlite` (the log of the data folder), `postgresql` (TRUNKLINE_DATABASE_URL), postgresql://…, a data"
    " folder, or the trunkline.db in one"
)


def add_migrate_command(app: typer.Typer) -> None:
    """Add the command. It imports what it needs when it runs."""
    app.command(
        "migrate",
        epilog="Examples:\n\ntrunkline-router migrate --from sqlite --to postgresql\n\n"
        "trunkline-router migrate --from /var/lib/trunkline --to postgresql://bridge@db/bridge --tenant acme",
    )(migrate)


def migrate(
    target: Annotated[str, typer.Option("--to", metavar="LOG", help=f"Copy to {_PLACES}.")],
    source: Annotated[str, typer.Option("--from", metavar="LOG", help="Copy from such a log.")] = "",
    tenant: Annotated[
        list[str] | None,
        typer.Option(help="Copy this tenant only, also to a log with others. Repeatable."),
    ] = None,
    discard: Annotated[
        bool, typer.Option("--discard", help="Only delete what an unfinished copy left in --to.")
    ] = False,
    data_dir: DataDir = Path("data"),
    as_json: Json = False,
) -> None:
    """Copy a log to another database, verified by count and digest; no router may run on either.

    After an interruption, even by kill -9, run it again: it continues. No router opens the copy until it is
    complete and verified. The source is not changed. Clients resume on the copy as after a restart.
    """
    import asyncio

    from trunkline_router.log import engines

    if not discard and not source:
        raise typer.BadParameter("name the log to copy", param_hint="--from")
    if discard:
        with failures():
            found = asyncio.run(engines.discard_copy(target, data_dir=data_dir))
        typer.echo("Deleted the unfinished copy." if found else "There is no unfinished copy.")
        return
    tenants = list(dict.fromkeys(tenant)) if tenant else None
    with failures(), _progress_bar() as progress:
        report = asyncio.run(engines.migrate(source, target, tenants, data_dir=data_dir, progress=progress))
    _print(report, as_json=as_json)


def _print(report: CopyReport, *, as_json: bool) -> None:
    import json
    from dataclasses import asdict

    from trunkline_router.cli.formatting import copied_table
    from trunkline_router.cli.operator_client import make_console

    if as_json:
        fields = asdict(report) | {"tables": [each._asdict() for each in report.tables]}
        print(json.dumps(fields, indent=2))  # noqa: T201
        return
    make_console().print(copied_table(report.tables))
    for warning in report.warnings:
        typer.echo(f"warning: {warning}", err=True)
    if report.data_keys:
        typer.echo(f"A router needs the data key {', '.join(report.data_keys)} to open it.")
    typer.echo(f"Copied {report.source} to {report.target}; verified.")


@contextmanager
def _progress_bar() -> Iterator[Progress]:
    """Show a bar with rows on a terminal."""
    from rich.progress import MofNCompleteColumn, TimeRemainingColumn

    with terminal_bar(MofNCompleteColumn(), TimeRemainingColumn()) as bar:
        task = bar.add_task("copying and verifying", total=None)
        yield lambda done, expected: bar.update(task, completed=done, total=expected)
