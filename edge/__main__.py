"""The edge's command line: `python -m edge`."""

from __future__ import annotations

import os

# Before grpc is imported: what its core would print is said better by the catalogue.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")

from edge.app import run
from edge.settings import EdgeSettings
from shared.cli import make_app


def main() -> None:
    """Entry point of `trunkline-edge`."""
    make_app("edge", EdgeSettings, run)()


if __name__ == "__main__":
    main()
