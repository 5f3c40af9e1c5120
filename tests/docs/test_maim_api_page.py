"""The examples in docs/dialects/maim_api.md work with the client from PyPI."""

from __future__ import annotations

import asyncio
import re
import sys
from typing import TYPE_CHECKING, Any

from trunkline_edge.dialects.maim.api_codec import MAX_FRAME_BYTES

from tests.support.processes import (
    READY_TIMEOUT_S,
    ROOT,
    Process,
    edge_process,
    router_process,
    worker_process,
)

if TYPE_CHECKING:
    from pathlib import Path

PAGE = (ROOT / "docs" / "dialects" / "maim_api.md").read_text()
#: Programs on the page, by name.
PROGRAMS = dict(re.findall(r"```python (\w+)\n(.*?)```", PAGE, re.DOTALL))


async def test_the_client_is_answered_and_the_backend_reaches_nobody_once_it_has_gone(tmp_path: Path) -> None:
    with (
        router_process(tmp_path) as router,
        edge_process(router.address) as edge,
        worker_process(router.address),
    ):
        program = PROGRAMS["client"].replace("127.0.0.1:8080", edge.address)
        program = f"import logging\nlogging.disable()\n{program}"
        with Process([sys.executable, "-c", program], {}, "the client", tmp_path) as client:
            assert await asyncio.to_thread(client.line) == "You said: hello"
            assert await asyncio.to_thread(client.wait) == 0
        defined: dict[str, Any] = {}
        exec(PROGRAMS["backend"], defined)
        async with asyncio.timeout(READY_TIMEOUT_S):
            while await defined["tell"](router.address, "hello"):
                """The router has not yet been notified that the client disconnected."""


def test_the_limit_is_the_codecs() -> None:
    assert f"larger than {MAX_FRAME_BYTES >> 20} MiB is sent" in PAGE
