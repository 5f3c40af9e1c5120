"""The edge's command line: `trunkline-edge`."""

from __future__ import annotations

import os

# Before grpc is imported: the edge logs link problems itself.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")

from trunkline_runtime.cli import make_app

from trunkline_edge.app import run
from trunkline_edge.settings import EdgeSettings


def main() -> None:
    """Entry point of `trunkline-edge`."""
    make_app("edge", EdgeSettings, run)()


if __name__ == "__main__":
    main()
