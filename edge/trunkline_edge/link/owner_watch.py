"""Watches which of several routers owns the log, so that the edge need not wait for its link to break."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from contextlib import suppress

import grpc
import grpc.aio
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpc_health.v1.health_pb2_grpc import HealthStub
from trunkline_runtime.router_addresses import RouterAddresses

from trunkline_edge.router_channel import RouterChannelFactory

#: A router serves this while it owns the log.
_SERVICE = "trunkline.v1.EdgeService"
#: Bound of the answer of a router that is asked whether it owns the log.
ANSWER_TIMEOUT_S = 0.5
#: Interval of questions while two routers report that they own the log, as one does that was frozen.
RECHECK_S = 1.0
#: Longest wait before a broken watch is begun again.
REWATCH_S = 1.0

_OPTIONS: list[tuple[str, int | str]] = [
    ("grpc.enable_retries", 0),
    ("grpc.use_local_subchannel_pool", 1),
    # A watch is silent for days, and must not outlast its router.
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 5_000),
]


class OwnerWatch:
    """Watches the health of several routers; with one router there is nothing to follow."""

    def __init__(self, routers: RouterAddresses, channels: RouterChannelFactory) -> None:
        self._routers = routers
        self._channels = channels
        #: Routers that serve, as they last reported. One that is frozen reports nothing else.
        self._serving: set[str] = set()
        self._stubs: dict[str, HealthStub] = {}
        self._changed = asyncio.Event()
        #: The last router that began to serve; empty if there was none since the last call of `next_rise`.
        self._risen = ""
        self._has_risen = asyncio.Event()

    async def run(self) -> None:
        """Watch; returns at once for one router, otherwise only by being cancelled."""
        if len(self._routers) > 1:
            async with asyncio.TaskGroup() as tasks:
                for router in self._routers:
                    tasks.create_task(self._watch(router))

    async def next_rise(self, timeout_s: float) -> str:
        """Return a router that began to serve since the last call; empty if none does until the timeout."""
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._has_risen.wait()
        return self.forget_rise()

    def forget_rise(self) -> str:
        """Return the router that began to serve since the last call, if any."""
        risen, self._risen = self._risen, ""
        self._has_risen.clear()
        return risen

    async def wait_until_moved(self, router: str, is_silent: Callable[[], bool]) -> str:
        """Wait until another router owns the log, and this one does not answer that it does; return that one.

        A router that is cut off from its database keeps its links, and one that is frozen keeps its sockets.
        `is_silent` tells whether this router's link is; then it is not asked.
        """
        while True:
            while not (
                others := [each for each in self._routers if each in self._serving and each != router]
            ):
                self._changed.clear()
                await self._changed.wait()
            asked = others if is_silent() else [*others, router]
            answers = await asyncio.gather(*map(self._serves, asked))
            still_owns = asked is not others and answers.pop()
            if not still_owns and any(answers):
                return others[answers.index(True)]
            await asyncio.sleep(RECHECK_S)

    async def _watch(self, router: str) -> None:
        while True:
            async with self._channels.open(router, _OPTIONS) as channel:
                stub = self._stubs[router] = HealthStub(channel)
                with suppress(grpc.aio.AioRpcError):
                    async for response in stub.Watch(HealthCheckRequest(service=_SERVICE)):
                        self._record(router, response.status == HealthCheckResponse.SERVING)
                self._record(router, False)
                del self._stubs[router]
            await asyncio.sleep(random.uniform(0, REWATCH_S))

    def _record(self, router: str, serves: bool) -> None:
        if not serves:
            self._serving.discard(router)
            if self._risen == router:
                self.forget_rise()
        elif router not in self._serving:
            self._serving.add(router)
            self._risen = router
            self._has_risen.set()
            self._changed.set()

    async def _serves(self, router: str) -> bool:
        """Ask a router whether it owns the log."""
        if router not in self._stubs:
            return False
        request = HealthCheckRequest(service=_SERVICE)
        try:
            response = await self._stubs[router].Check(request, timeout=ANSWER_TIMEOUT_S)
        except grpc.aio.AioRpcError:
            return False
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            # The channel was closed, because its watch broke.
            return False
        return bool(response.status == HealthCheckResponse.SERVING)
