"""The router's command line: `trunkline-router`."""

from __future__ import annotations

import os

# Before grpc is imported: what its core would print is said better by the catalogue.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")

from typing import TYPE_CHECKING

from trunkline_runtime.cli import make_app

from trunkline_router.cli.lazy_group import tenant_app

if TYPE_CHECKING:
    from trunkline_router.settings import RouterSettings


def main() -> None:
    """Entry point of `trunkline-router`."""
    app = make_app("router", _settings, _run)
    app.add_typer(tenant_app(), name="tenant")
    app()


def _settings() -> type[RouterSettings]:
    from trunkline_router.settings import RouterSettings

    return RouterSettings


def _run(settings: RouterSettings) -> int:
    # Not sooner: the other commands do without most of a router.
    from trunkline_router.app import run

    return run(settings)


if __name__ == "__main__":
    main()
