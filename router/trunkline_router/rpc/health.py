"""Health of the process and of each service."""

from __future__ import annotations

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

    async def follow(self, is_ready: Callable[[], bool]) -> None:
        """Answer by this from now on, and notify those who watch. Call it at each change."""
        self._is_ready = is_ready
        status = HealthCheckResponse.SERVING if is_ready() else HealthCheckResponse.NOT_SERVING
        for name in SERVICES:
            await self.set(name, status)

    async def Check(  # noqa: N802
        self, request: HealthCheckRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> HealthCheckResponse:
        """See health.proto. True at the time of the answer, even if the process was frozen until now."""
        if request.service in SERVICES and not self._is_ready():
            return HealthCheckResponse(status=HealthCheckResponse.NOT_SERVING)
        answer: HealthCheckResponse = await super().Check(request, context)
        return answer
