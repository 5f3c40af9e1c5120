"""The bot of a page, with the router and the edge that it needs."""

from __future__ import annotations

import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING

from tests.support.processes import Process, edge_process, router_process

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@contextmanager
def page_bot(folder: Path, tenants: str, bot: str) -> Iterator[Process]:
    """Run a router with a tenants file, an edge, and a bot; yield the edge."""
    file = folder / "tenants.toml"
    file.write_text(tenants)
    with (
        router_process(folder / "data", TRUNKLINE_TENANTS_FILE=str(file)) as router,
        edge_process(router.address) as edge,
        Process(
            [sys.executable, "-c", bot.replace("127.0.0.1:50051", router.address)], {}, "the bot", folder
        ),
    ):
        yield edge
