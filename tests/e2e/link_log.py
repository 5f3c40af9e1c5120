"""Log lines of an edge about its link to a router."""

from __future__ import annotations

import asyncio
import json
import sys
from contextlib import suppress

from tests.e2e.polling import wait_until
from tests.support.processes import ROOT, Process

#: Problem that is logged instead of the reason if the stream ended during a write.
WRITE_INTERRUPTED = "the stream ended while it was written to"


def problems(edge: Process) -> list[str]:
    """Return what the edge has logged about its link."""
    lines = [json.loads(line) for line in edge.stderr.splitlines()]
    return [line["problem"] for line in lines if "problem" in line]


async def link_problems(router: str, **env: str) -> list[str]:
    """Start an edge with this router address; return what it logs about its link."""
    env = {"TRUNKLINE_EDGE_LISTEN": "127.0.0.1:0", "TRUNKLINE_ROUTER": router, **env}
    with Process([sys.executable, "-m", "trunkline_edge", "serve"], env, "edge", ROOT) as edge:
        await wait_until(lambda: problems(edge), "the edge logs a problem")
        with suppress(AssertionError):
            # Allow more attempts, which must not be logged.
            await wait_until(lambda: len(problems(edge)) > 1, "another problem is logged", 0.6)
        assert await asyncio.to_thread(edge.terminate) == 0
        assert "Traceback" not in edge.stderr
        return problems(edge)
