"""A worker attached to a scripted router, with a handler that the test sets."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from trunkline_client import (
    Handler,
    Message,
    Worker,
)

from tests.clients.scripted_edge import FakeTime
from tests.clients.scripted_router import ScriptedRouter, StreamSide, scripted_router
from tests.support.patience import patient


@asynccontextmanager
async def attached(time: FakeTime | None = None) -> AsyncIterator[tuple[Worker, ScriptedRouter, StreamSide]]:
    """An attached worker; the test sets its handler before it delivers messages."""
    async with scripted_router() as router:
        clock = (time or FakeTime()).clock
        worker = Worker(router.address, tenant="demo", agents=["echo"], clock=clock)
        handlers: list[Handler] = []

        def handle(message: Message) -> Any:
            return handlers[-1](message)

        worker.handler = handlers.append  # type: ignore[method-assign,assignment]
        running = asyncio.create_task(worker.run(handle))
        side = await router.stream()
        await side.welcome()
        try:
            async with asyncio.timeout(patient(5)):
                yield worker, router, side
        finally:
            running.cancel()
            await asyncio.wait({running})


async def read_settlement(side: StreamSide) -> Any:
    """Reads the next settlement; fails if several come at once."""
    (settled,) = await side.read_until("settlements")
    return settled
