"""The edge's command line: `trunkline-edge`."""

from __future__ import annotations

import os

# Before grpc is imported: the edge logs link problems itself.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")

from typing import TYPE_CHECKING

from trunkline_runtime.cli import make_app

if TYPE_CHECKING:
    from trunkline_edge.settings import EdgeSettings


def main() -> None:
    """Entry point of `trunkline-edge`."""
    make_app("edge", _settings, _run)()


def _settings() -> type[EdgeSettings]:
    from trunkline_edge.settings import EdgeSettings

    return EdgeSettings


def _run(settings: EdgeSettings) -> int:
    # Not sooner: the other commands do without most of an edge.
    from trunkline_edge.app import run

    return run(settings)


if __name__ == "__main__":
    main()
