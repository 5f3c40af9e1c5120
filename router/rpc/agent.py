"""AgentService: workers."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

import grpc.aio
import structlog
from trunkline.v1 import catalogue
from trunkline.v1.agent_service_pb2 import AttachRequest, AttachResponse, AttachWelcome
from trunkline.v1.agent_service_pb2_grpc import AgentServiceServicer

from router.core.deliveries import Worker
from router.rpc import streams
from router.rpc.status import answers
from router.shell import Shell

_log = structlog.get_logger()


class AgentServicer(AgentServiceServicer):
    """Carries batches between workers and the core."""

    def __init__(self, shell: Shell, router_id: str) -> None:
        self._shell = shell
        self._router_id = router_id

    @answers
    async def Attach(  # noqa: N802
        self, request_iterator: AsyncIterator[AttachRequest], context: grpc.aio.ServicerContext[Any, Any]
    ) -> None:
        """See agent_service.proto."""
        shell, core = self._shell, self._shell.core
        first = await streams.first(context)
        worker = core.agents.attached(first.hello, time.monotonic())
        stream = shell.opened(worker)
        names = {"tenant": worker.tenant, "agents": worker.agents, "worker": worker.ident}
        _log.info("worker attached", **names, peer=context.peer())
        try:
            await context.write(AttachResponse(welcome=self._welcome()))
            shell.settle()
            room = asyncio.Event()
            writing = streams.write_batches(context, stream, worker.take, AttachResponse, room.set)
            await streams.run(stream, self._read(worker, context, room), writing)
        finally:
            core.agents.detached(worker)
            del shell.streams[worker]
            shell.settle()
            _log.info("worker detached", **names)

    def _welcome(self) -> AttachWelcome:
        return AttachWelcome(
            router_id=self._router_id,
            contract_minor=catalogue.CONTRACT_MINOR,
            lease_s=max(1, round(self._shell.core.agents.lease_s)),
        )

    async def _read(
        self, worker: Worker, context: grpc.aio.ServicerContext[Any, Any], room: asyncio.Event
    ) -> None:
        shell, core = self._shell, self._shell.core
        while (batch := await context.read()) is not grpc.aio.EOF:
            core.agents.received(worker, batch, time.monotonic())
            shell.settle()
            while worker.is_full:
                room.clear()
                await room.wait()
