"""The router's command line: `python -m router`."""

from __future__ import annotations

import os

# Before grpc is imported: what its core would print is said better by the catalogue.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")

from router.cli.later import tenant_app
from router.settings import RouterSettings
from shared.cli import make_app


def main() -> None:
    """Entry point of `trunkline-router`."""
    app = make_app("router", RouterSettings, _run)
    app.add_typer(tenant_app(), name="tenant")
    app()


def _run(settings: RouterSettings) -> int:
    # Not sooner: the other commands do without most of a router.
    from router.app import run

    return run(settings)


if __name__ == "__main__":
    main()
