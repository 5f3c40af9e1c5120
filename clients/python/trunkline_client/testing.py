"""Tests of a worker's handler, without a router.

    from trunkline_client.testing import run_worker

    async def test_the_bot_echoes() -> None:
        async with run_worker(bot.worker) as router:
            delivery = await router.deliver("hello")
            reply = await delivery.reply()
            assert (await reply.wait()).text == "You said: hello"
            assert (await delivery.wait()).outcome == "ack"

The worker itself runs, on a real gRPC stream to a `FakeRouter` in this process.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import grpc.aio

from trunkline_client.channel import open_channel
from trunkline_client.fake_delivery import FakeDelivery, FakeReply
from trunkline_client.fake_router import FakeRouter
from trunkline_client.handler import Handler
from trunkline_client.worker import Worker

__all__ = ["FakeDelivery", "FakeReply", "FakeRouter", "run_worker"]


@asynccontextmanager
async def run_worker(worker: Worker, handler: Handler | None = None) -> AsyncIterator[FakeRouter]:
    """Runs a worker against a router in this process, for the length of the block.

    The worker connects to it and not to its own router, without TLS and API key. Leaving the block cancels
    the worker; what ended it before that is raised.

    Args:
        worker: The worker, which is not running.
        handler: The handler, unless the worker has one.

    Returns:
        The router, by which the test delivers messages.

    Raises:
        RuntimeError: The worker has no handler, runs already, or ends at once.
    """
    router = FakeRouter()
    await router.start()

    def channel(_: str) -> grpc.aio.Channel:
        return open_channel(router.address)

    running = asyncio.create_task(worker._run_over(channel, handler))  # noqa: SLF001 -- one package
    attached = asyncio.create_task(router.wait_until(lambda: router.hello))
    try:
        await asyncio.wait({running, attached}, return_when=asyncio.FIRST_COMPLETED)
        if running.done():
            running.result()
            raise RuntimeError("the worker ended before it was attached")
        attached.result()
        yield router
    finally:
        attached.cancel()
        running.cancel()
        await asyncio.wait({running, attached})
        await router.stop()
        if not running.cancelled():
            running.result()
