"""Watches whether another router has taken over, which a stream to one that is frozen never reports."""

from __future__ import annotations

import asyncio
from contextlib import suppress

import grpc
import grpc.aio
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpc_health.v1.health_pb2_grpc import HealthStub

from trunkline_client.clock import Clock
from trunkline_client.following_channel import FollowingChannel
from trunkline_client.router_choice import RouterChoice

#: The problem with a router that was left.
MOVED = "another router owns the log"
#: A router serves this while it owns the log.
_SERVICE = "trunkline.v1.AgentService"
#: Bound of the answer of a router that is asked whether it owns the log.
ANSWER_TIMEOUT_S = 0.5
#: Interval of questions while two routers report that they own the log, as one does that was frozen.
RECHECK_S = 1.0
#: Longest wait before a broken watch is begun again.
REWATCH_S = 1.0


class TakeoverWatch:
    """Watches the health of the other routers while a stream to one is open."""

    def __init__(self, routers: RouterChoice, channels: FollowingChannel, clock: Clock) -> None:
        self._routers = routers
        self._channels = channels
        self._clock = clock

    async def wait_until_moved(self, router: str) -> None:
        """Waits until another router owns the log, and this one does not answer that it does."""
        moved = asyncio.Event()
        others = [each for each in self._routers.in_order() if each != router]
        tasks = [asyncio.create_task(self._watch(each, router, moved)) for each in others]
        try:
            await moved.wait()
        finally:
            for task in tasks:
                task.cancel()
            if tasks:
                await asyncio.wait(tasks)

    async def _watch(self, other: str, router: str, moved: asyncio.Event) -> None:
        while True:
            with suppress(grpc.aio.AioRpcError, grpc.aio.UsageError):
                watch = HealthStub(self._channels.to(other)).Watch(HealthCheckRequest(service=_SERVICE))
                async for response in watch:
                    if response.status != HealthCheckResponse.SERVING:
                        continue
                    while await self._serves(other):
                        if not await self._serves(router):
                            moved.set()
                            return
                        await self._clock.sleep(RECHECK_S)
            await self._clock.sleep(self._clock.random() * REWATCH_S)

    async def _serves(self, router: str) -> bool:
        """Asks a router whether it owns the log."""
        request = HealthCheckRequest(service=_SERVICE)
        try:
            answer = await HealthStub(self._channels.to(router)).Check(request, timeout=ANSWER_TIMEOUT_S)
        except (grpc.aio.AioRpcError, grpc.aio.UsageError):
            return False
        return bool(answer.status == HealthCheckResponse.SERVING)
