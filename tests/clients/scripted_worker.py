"""Workers attached to a scripted router."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from trunkline_client import Handler, Message, Worker, text_of

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


def worker_of(router: ScriptedRouter, time: FakeTime | None = None, **options: Any) -> Worker:
    """A worker of this router, with fake time."""
    clock = (time or FakeTime()).clock
    return Worker(router.address, tenant="demo", agents=["echo"], capacity=8, clock=clock, **options)


@asynccontextmanager
async def serving(
    handler: Handler, time: FakeTime | None = None
) -> AsyncIterator[tuple[ScriptedRouter, StreamSide]]:
    """An attached worker and the router's side; cancels the worker."""
    async with scripted_router() as router:
        running = asyncio.create_task(worker_of(router, time).run(handler))
        side = await router.stream()
        await side.welcome()
        try:
            yield router, side
        finally:
            running.cancel()
            await asyncio.wait({running})
            assert running.cancelled()


async def read_settled(side: StreamSide) -> dict[int, list[str]]:
    """Reads the next settlements; returns the texts of the replies by delivery."""
    batch = await side.read()
    while not batch.settlements:
        batch = await side.read()
    return {
        each.delivery_id: ["".join(part.text.text for part in reply.parts) for reply in each.replies]
        for each in batch.settlements
    }


def echo(message: Message) -> str:
    return f"You said: {text_of(message)}"
