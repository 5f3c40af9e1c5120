"""AgentService: workers."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

import grpc.aio
import structlog
from trunkline.v1 import catalogue
from trunkline.v1.agent_service_pb2 import (
    AttachRequest,
    AttachResponse,
    AttachWelcome,
    ListDeadLettersRequest,
    ListDeadLettersResponse,
    ReplayDeadLettersRequest,
    ReplayDeadLettersResponse,
)
from trunkline.v1.agent_service_pb2_grpc import AgentServiceServicer

from trunkline_router.core.agents.worker import AttachedWorker
from trunkline_router.core.replies.stream_rate_limit import said_in
from trunkline_router.core.validation.validator import check
from trunkline_router.rpc import streams
from trunkline_router.rpc.status import answers
from trunkline_router.runtime import RouterRuntime

_log = structlog.get_logger()

DEFAULT_PAGE = 50


class AgentServicer(AgentServiceServicer):
    """Carries batches between workers and the core."""

    def __init__(self, shell: RouterRuntime, router_id: str) -> None:
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
            core.worker_detached(worker)
            del shell.streams[worker]
            shell.settle()
            _log.info("worker detached", **names)

    def _welcome(self) -> AttachWelcome:
        return AttachWelcome(
            router_id=self._router_id,
            contract_minor=catalogue.CONTRACT_MINOR,
            lease_s=max(1, round(self._shell.core.delivery_lease_s)),
            reply_lease_s=max(1, round(self._shell.core.reply_lease_s)),
        )

    async def _read(
        self, worker: AttachedWorker, context: grpc.aio.ServicerContext[Any, Any], room: asyncio.Event
    ) -> None:
        shell, core = self._shell, self._shell.core
        while (batch := await context.read()) is not grpc.aio.EOF:
            core.worker_received(worker, batch, time.monotonic())
            wait_s = core.pacing.charge(worker.tenant, said_in(batch), batch.ByteSize(), time.monotonic())
            shell.settle()
            # What it adds to open messages fills outboxes and the commit queue.
            await shell.room(worker.blocked_by)
            while worker.is_full:
                room.clear()
                await room.wait()
            if wait_s:
                worker.is_paced = True
                await asyncio.sleep(wait_s)
                worker.is_paced = False

    @answers
    async def ListDeadLetters(  # noqa: N802
        self, request: ListDeadLettersRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> ListDeadLettersResponse:
        """See agent_service.proto."""
        check(request)
        self._shell.core.directory.tenant(request.tenant)
        size = request.page_size or DEFAULT_PAGE
        found = await self._shell.log.dead_letters(request.tenant, request.agent, request.after, size + 1)
        response = ListDeadLettersResponse(more=len(found) > size)
        for letter in found[:size]:
            added = response.dead_letters.add(
                delivery_id=letter.delivery_id, attempts=letter.attempts, reason=letter.reason
            )
            added.message.MergeFromString(letter.message)
            added.given_up_at.FromMilliseconds(letter.given_up_ms)
        return response

    @answers
    async def ReplayDeadLetters(  # noqa: N802
        self, request: ReplayDeadLettersRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> ReplayDeadLettersResponse:
        """See agent_service.proto."""
        check(request)
        shell = self._shell
        shell.core.directory.tenant(request.tenant)

        async def replay() -> int:
            deliveries = await shell.log.replay(request.tenant, request.agent, request.delivery_ids)
            shell.core.agents.replayed(deliveries)
            return len(deliveries)

        replayed = await shell.exclusively(replay)
        shell.settle()
        return ReplayDeadLettersResponse(replayed=replayed)
