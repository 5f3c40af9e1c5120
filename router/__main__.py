"""The router's command line: `python -m router`."""

from __future__ import annotations

import os

# Before grpc is imported: what its core would print is said better by the catalogue.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")

from router.app import run
from router.settings import RouterSettings
from shared.cli import make_app


def main() -> None:
    """Entry point of `trunkline-router`."""
    make_app("router", RouterSettings, run)()


if __name__ == "__main__":
    main()
