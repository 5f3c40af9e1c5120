"""The edge's command line: `python -m edge`."""

from __future__ import annotations

import os
import sys

# Before grpc is imported: what its core would print is said better by the catalogue.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")

import typer
from pydantic import ValidationError
from rich.console import Console
from rich.table import Table

from edge.app import run
from edge.ops.logs import configure
from edge.settings import EdgeSettings

app = typer.Typer(help="Trunkline's edge.", no_args_is_help=True, pretty_exceptions_enable=False)


def load() -> EdgeSettings:
    """The settings of this process; exits with one line a mistake where they are not valid."""
    try:
        return EdgeSettings()
    except ValidationError as error:
        for mistake in error.errors():
            name = "TRUNKLINE_" + str(mistake["loc"][0]).upper()
            print(f"edge: {name}: {mistake['msg']}", file=sys.stderr)  # noqa: T201
        raise typer.Exit(2) from None


@app.command()
def serve() -> None:
    """Run an edge until SIGTERM; settings come from the environment (see show-config)."""
    settings = load()
    configure(settings.log_format)
    raise typer.Exit(run(settings))


@app.command()
def show_config() -> None:
    """Show every setting, its value and where that comes from."""
    settings = load()
    table = Table("variable", "value", "from", "meaning")
    for name, field in EdgeSettings.model_fields.items():
        variable = f"TRUNKLINE_{name.upper()}"
        source = "environment" if name in settings.model_fields_set else "default"
        table.add_row(variable, str(getattr(settings, name)), source, field.description)
    Console().print(table)


def main() -> None:
    """Entry point of `trunkline-edge`."""
    app()


if __name__ == "__main__":
    main()
