"""The command line of a process: `serve` and `show-config`."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, TypeVar

import typer
from pydantic import BeforeValidator, Field, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict
from rich.console import Console
from rich.table import Table

from trunkline_runtime.logs import Format, configure

PREFIX = "TRUNKLINE_"

#: A setting that names a file; an empty value names none.
File = Annotated[Path | None, BeforeValidator(lambda given: given or None)]


class ProcessSettings(BaseSettings):
    """Settings of a process, read from environment variables `TRUNKLINE_<NAME>`."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, extra="ignore")

    log_format: Format = Field(default="auto", description="auto: text on a terminal, else JSON")


S = TypeVar("S", bound=ProcessSettings)


def make_app(name: str, settings: type[S], run: Callable[[S], int]) -> typer.Typer:
    """The commands of a process that is configured by the environment."""
    app = typer.Typer(help=f"Trunkline's {name}.", no_args_is_help=True, pretty_exceptions_enable=False)

    @app.command(help=f"Run the {name} until SIGTERM; settings come from the environment (see show-config).")
    def serve() -> None:
        loaded = _load(name, settings)
        configure(loaded.log_format)
        raise typer.Exit(run(loaded))

    @app.command()
    def show_config() -> None:
        """Show every setting with its value and source."""
        Console().print(_table(_load(name, settings)))

    return app


def _load(name: str, settings: type[S]) -> S:
    """Load the settings. Exits with one line per mistake if they are invalid."""
    try:
        return settings()
    except ValidationError as error:
        for mistake in error.errors():
            variable = PREFIX + str(mistake["loc"][0]).upper()
            print(f"{name}: {variable}: {mistake['msg']}", file=sys.stderr)  # noqa: T201
        raise typer.Exit(2) from None


def _table(settings: ProcessSettings) -> Table:
    table = Table()
    table.add_column("variable", no_wrap=True)
    for heading in ("value", "from", "meaning"):
        table.add_column(heading)
    for field, description in type(settings).model_fields.items():
        source = "environment" if field in settings.model_fields_set else "default"
        value = str(getattr(settings, field))
        table.add_row(PREFIX + field.upper(), value, source, description.description)
    return table
