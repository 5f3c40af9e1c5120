"""Health of the process and of each service."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import grpc.aio
from grpc_health.v1._async import HealthServicer
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse

from trunkline_router.rpc.services import SERVICES


class RouterHealth(HealthServicer):  # type: ignore[misc]  # the package is untyped
    """The process, whose name is empty, is SERVING while it runs; a service, while this router owns the log.

    Liveness is therefore independent of the log. Readiness is that of any service.
    """

    def __init__(self) -> None:
        super().__init__()
        self._is_ready: Callable[[], bool] = lambda: False
        self._watchers: set[asyncio.Task[Any]] = set()
        self._has_ended = False

    async def follow(self, is_ready: Callable[[], bool]) -> None:
        """Answer by this from now on, and notify those who watch. Call it at each change."""
        self._is_ready = is_ready
        status = HealthCheckResponse.SERVING if is_ready() else HealthCheckResponse.NOT_SERVING
        for name in SERVICES:
            await self.set(name, status)

    async def end(self) -> None:
        """Report everything as NOT_SERVING for good, and end the streams of those who watch."""
        await self.enter_graceful_shutdown()
        # Let them write that first.
        await asyncio.sleep(0)
        self._has_ended = True
        for watcher in self._watchers:
            watcher.cancel()

    async def Watch(  # noqa: N802
        self, request: HealthCheckRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> None:
        """See health.proto."""
        watcher = asyncio.current_task()
        assert watcher is not None
        self._watchers.add(watcher)
        try:
            await super().Watch(request, context)
        except asyncio.CancelledError:
            if not self._has_ended:
                raise
        finally:
            self._watchers.discard(watcher)

    async def Check(  # noqa: N802
        self, request: HealthCheckRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> HealthCheckResponse:
        """See health.proto. True at the time of the answer, even if the process was frozen until now."""
        if request.service in SERVICES and not self._is_ready():
            return HealthCheckResponse(status=HealthCheckResponse.NOT_SERVING)
        answer: HealthCheckResponse = await super().Check(request, context)
        return answer
