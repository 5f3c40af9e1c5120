"""Commands on the log: `backup`, `restore`, `restored` and `check`. They need no running router."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.progress import Progress, ProgressColumn

DataDir = Annotated[
    Path,
    typer.Option(envvar="TRUNKLINE_DATA_DIR", help="The router's data folder.", file_okay=False),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def add_data_commands(app: typer.Typer) -> None:
    """Add the commands. Each imports what it needs when it runs."""
    app.command("backup", epilog="Example:\n\ntrunkline-router backup /var/backups/trunkline.db")(backup)
    app.command(
        "restore",
        epilog="Example:\n\ntrunkline-router restore /var/backups/trunkline.db --audit audit.jsonl",
    )(restore)
    app.command("restored")(restored)
    app.command("check", epilog="Examples:\n\ntrunkline-router check\n\ntrunkline-router check backup.db")(
        check
    )


def backup(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The backup to write.", show_default=False)],
    data_dir: DataDir = Path("data"),
    force: Annotated[bool, typer.Option("--force", help="Replace FILE if it exists.")] = False,
    as_json: Json = False,
) -> None:
    """Back up the log while the router runs: a consistent, verified copy, with a manifest FILE.json.

    Do not copy trunkline.db itself: nearly everything is in the write-ahead log beside it.
    """
    from trunkline_router.log.engines import back_up

    with failures(), _progress_bar("backing up") as progress:
        manifest = back_up(data_dir, file, force=force, progress=progress)
    if as_json:
        print(manifest.to_json(), end="")  # noqa: T201
        return
    typer.echo(
        f"{file}: {manifest.bytes} bytes, {manifest.messages} messages of {manifest.topics} topics,"
        f" {manifest.tenants} tenants; verified."
    )


def restore(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The backup to restore.", show_default=False)],
    data_dir: DataDir = Path("data"),
    audit: Annotated[
        Path | None,
        typer.Option(
            help="Audit entries since the backup, as `trunkline-router audit --json` prints them.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Replace the log by a backup, while no router runs. The former log is kept beside it.

    Clients get `recovered: false` and read the history; ids of lost messages are not given again. Revoked
    tokens, deleted keys and tenants, and erased users stay so, as the former log or the audit file has them;
    for that, an encrypted log needs the data key (TRUNKLINE_DATA_KEY or TRUNKLINE_DATA_KEY_FILE).
    """
    from trunkline_router.log import engines

    with failures(), _progress_bar("restoring") as progress:
        report = engines.restore(data_dir, file, audit, progress=progress)
    for each in report.reapplied:
        typer.echo(f"applied again: {each}")
    for warning in report.warnings:
        typer.echo(f"warning: {warning}", err=True)
    kept = f" The former log is {report.replaced}." if report.replaced else ""
    typer.echo(f"Restored {file} with {report.logs} topics, each in a new epoch.{kept}")


def restored() -> None:
    """Begin new epochs after PostgreSQL's own tools restored the database to an earlier time.

    Run it before a router starts: clients get `recovered: false` and read the history; ids of lost messages
    are not given again. Revoke, delete and erase again what was since.
    """
    import asyncio

    from trunkline_router.log import engines

    with failures():
        logs = asyncio.run(engines.fork_restored_database())
    typer.echo(f"The log in PostgreSQL has {logs} topics, each in a new epoch.")


def check(
    file: Annotated[
        Path | None,
        typer.Argument(
            metavar="[FILE]",
            help="A backup; by default the log in use: TRUNKLINE_DATABASE_URL, or the data folder.",
            show_default=False,
        ),
    ] = None,
    data_dir: DataDir = Path("data"),
    as_json: Json = False,
) -> None:
    """Verify the whole log, or a backup. Exits with 1 if damaged.

    Checks the log's own rules and the checksum of each entry; of a file also its pages and indexes, for which
    PostgreSQL has pg_amcheck.
    """
    import asyncio
    import json

    from trunkline_router.cli.operator_client import make_console
    from trunkline_router.log import engines

    is_database = file is None and engines.uses_database()
    path = data_dir if file is None else file
    with failures(), make_console(stderr=True).status(f"checking {'PostgreSQL' if is_database else path} …"):
        problems = asyncio.run(engines.check_database()) if is_database else engines.check(path)
    if as_json:
        print(json.dumps({"problems": problems}, indent=2))  # noqa: T201
    else:
        for problem in problems or ["No problems were found."]:
            typer.echo(problem)
    if problems:
        raise typer.Exit(1)


@contextmanager
def _progress_bar(description: str) -> Iterator[Callable[[float], None]]:
    """Show a bar on a terminal. Yields a function that sets the share that is done."""
    from rich.progress import TaskProgressColumn

    with terminal_bar(TaskProgressColumn()) as bar:
        task = bar.add_task(description, total=1)
        yield lambda share: bar.update(task, completed=share)


def terminal_bar(*columns: ProgressColumn) -> Progress:
    """A bar on a terminal, with these columns after it."""
    from rich.progress import BarColumn, Progress, TextColumn

    from trunkline_router.cli.operator_client import make_console

    console = make_console(stderr=True)
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        *columns,
        console=console,
        transient=True,
        # On anything else it would write an empty line.
        disable=not console.is_terminal,
    )


@contextmanager
def failures() -> Iterator[None]:
    """Print a failure as one line on stderr, and exit with 2, or with 1 if a copy differs from its source."""
    from trunkline_router.cli.operator_client import make_console, printable
    from trunkline_router.log.interface import BackupFailed
    from trunkline_router.log.migration.copied_log import CopyDiffers, CopyFailed

    _log_to_stderr()
    try:
        yield
    except (BackupFailed, CopyFailed) as error:
        make_console(stderr=True).print(printable(str(error)), style="red", soft_wrap=True)
        raise typer.Exit(1 if isinstance(error, CopyDiffers) else 2) from None


def _log_to_stderr() -> None:
    """Keep warnings of the log apart from what a command prints."""
    import logging
    import sys

    import structlog

    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING),
        # The stderr of each time.
        logger_factory=lambda *_: structlog.PrintLogger(sys.stderr),
    )
