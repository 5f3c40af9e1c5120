"""The command line of a process: `serve` and `show-config`.

A command imports what it needs when it runs, so that help and the other commands are quick.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

import typer

if TYPE_CHECKING:
    from rich.table import Table

    from trunkline_runtime.process_settings import ProcessSettings

S = TypeVar("S", bound="ProcessSettings")


def make_app(name: str, settings: Callable[[], type[S]], run: Callable[[S], int]) -> typer.Typer:
    """The commands of a process that is configured by the environment.

    `settings` imports and returns the class of the settings.
    """
    app = typer.Typer(help=f"Trunkline's {name}.", no_args_is_help=True, pretty_exceptions_enable=False)

    @app.command(help=f"Run the {name} until SIGTERM; settings come from the environment (see show-config).")
    def serve() -> None:
        from trunkline_runtime import library_logs
        from trunkline_runtime.logs import configure

        loaded = _load(name, settings())
        configure(loaded.log_format)
        library_logs.install()
        raise typer.Exit(run(loaded))

    @app.command()
    def show_config() -> None:
        """Show every setting with its value and source."""
        from rich.console import Console

        Console().print(_table(_load(name, settings())))

    return app


def _load(name: str, settings: type[S]) -> S:
    """Load the settings. Exits with one line per mistake if they are invalid."""
    from pydantic import ValidationError

    from trunkline_runtime.process_settings import PREFIX

    try:
        return settings()
    except ValidationError as error:
        for mistake in error.errors():
            variable = PREFIX + str(mistake["loc"][0]).upper()
            problem = mistake["msg"].removeprefix("Value error, ")
            print(f"{name}: {variable}: {problem}", file=sys.stderr)  # noqa: T201
        raise typer.Exit(2) from None


def _table(settings: ProcessSettings) -> Table:
    from rich.table import Table

    from trunkline_runtime.process_settings import PREFIX

    table = Table()
    table.add_column("variable", no_wrap=True)
    for heading in ("value", "from", "meaning"):
        table.add_column(heading)
    for field, description in type(settings).model_fields.items():
        source = "environment" if field in settings.model_fields_set else "default"
        value = str(getattr(settings, field))
        table.add_row(PREFIX + field.upper(), value, source, description.description)
    return table
