"""The router's command line: `trunkline-router`."""

from __future__ import annotations

import os

# Before grpc is imported: its core's log lines would repeat what error texts say better.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")

from typing import TYPE_CHECKING

from trunkline_runtime.cli import make_app

from trunkline_router.cli.data_commands import add_data_commands
from trunkline_router.cli.lazy_group import add_audit_command, tenant_app
from trunkline_router.cli.migrate_command import add_migrate_command

if TYPE_CHECKING:
    from trunkline_router.settings import RouterSettings


def main() -> None:
    """Entry point of `trunkline-router`."""
    app = make_app("router", _settings, _run)
    add_data_commands(app)
    add_migrate_command(app)
    add_audit_command(app)
    app.add_typer(tenant_app(), name="tenant")
    app(prog_name="trunkline-router")


def _settings() -> type[RouterSettings]:
    from trunkline_router.settings import RouterSettings

    return RouterSettings


def _run(settings: RouterSettings) -> int:
    # Imported here: the other commands need little of the router.
    from trunkline_router.app import run

    return run(settings)


if __name__ == "__main__":
    main()
