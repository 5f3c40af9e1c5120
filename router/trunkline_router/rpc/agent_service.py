"""AgentService: attached workers and dead letters."""

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

from trunkline_router.audit_trail import AuditTrail
from trunkline_router.core.agents.worker import AttachedWorker
from trunkline_router.core.replies.stream_rate_limit import count_messages
from trunkline_router.core.validation.validator import check
from trunkline_router.rpc import streams
from trunkline_router.rpc.status import rpc_method
from trunkline_router.runtime import PeerStream, RouterRuntime

_log = structlog.get_logger()

DEFAULT_PAGE = 50


class AgentServicer(AgentServiceServicer):
    """Carries batches between workers and the core, and manages dead letters."""

    def __init__(self, runtime: RouterRuntime, router_id: str, audit: AuditTrail) -> None:
        self._runtime = runtime
        self._audit = audit
        self._router_id = router_id

    @rpc_method
    async def Attach(  # noqa: N802
        self, request_iterator: AsyncIterator[AttachRequest], context: grpc.aio.ServicerContext[Any, Any]
    ) -> None:
        """See agent_service.proto."""
        runtime = self._runtime
        first = await streams.read_hello(context)
        with runtime.step() as core:
            worker = core.worker_attached(first.hello, time.monotonic())
            stream = runtime.open_stream(worker)
        names = {"tenant": worker.tenant, "agents": worker.agents, "worker": worker.worker_id}
        _log.info("worker attached", **names, peer=context.peer())
        try:
            await context.write(AttachResponse(welcome=self._welcome()))
            if stream.ended.done():  # meanwhile: its key was revoked, or the router stops
                raise stream.ended.result()
            # Only now: deliveries leased to a peer that is already gone would count as failed attempts.
            with runtime.step() as core:
                core.worker_welcomed(worker)
            written = asyncio.Event()
            writing = streams.write_batches(context, stream, worker.take, AttachResponse, written.set)
            await streams.run(stream, self._read(worker, stream, context, written), writing)
        finally:
            # First: an exception of the core must not leave the stream registered.
            runtime.close_stream(worker)
            with runtime.step() as core:
                core.worker_detached(worker, time.monotonic())
            _log.info("worker detached", **names)

    def _welcome(self) -> AttachWelcome:
        return AttachWelcome(
            router_id=self._router_id,
            contract_minor=catalogue.CONTRACT_MINOR,
            lease_s=max(1, round(self._runtime.core.delivery_lease_s)),
            reply_lease_s=max(1, round(self._runtime.core.reply_lease_s)),
        )

    async def _read(
        self,
        worker: AttachedWorker,
        stream: PeerStream,
        context: grpc.aio.ServicerContext[Any, Any],
        written: asyncio.Event,
    ) -> None:
        runtime = self._runtime
        while (batch := await context.read()) is not grpc.aio.EOF:
            with runtime.step() as core:
                core.worker_received(worker, batch, time.monotonic())
                size = stream.call.request_bytes
                wait_s = core.stream_limiter.charge(
                    worker.tenant, count_messages(batch), size, time.monotonic()
                )
            # Its deltas fill the links' outboxes and the commit queue.
            await runtime.wait_for_room(worker.blocked_by)
            while worker.is_full:
                written.clear()
                await written.wait()
            if wait_s:
                worker.is_throttled = True
                await asyncio.sleep(wait_s)
                worker.is_throttled = False

    @rpc_method
    async def ListDeadLetters(  # noqa: N802
        self, request: ListDeadLettersRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> ListDeadLettersResponse:
        """See agent_service.proto."""
        check(request)
        self._runtime.core.directory.active_tenant(request.tenant)
        size = request.page_size or DEFAULT_PAGE
        found = await self._runtime.log.dead_letters(request.tenant, request.agent, request.after, size + 1)
        response = ListDeadLettersResponse(more=len(found) > size)
        for letter in found[:size]:
            added = response.dead_letters.add(
                delivery_id=letter.delivery_id, attempts=letter.attempts, reason=letter.reason
            )
            added.message.MergeFromString(letter.message)
            added.given_up_at.FromMilliseconds(letter.given_up_ms)
        return response

    @rpc_method
    async def ReplayDeadLetters(  # noqa: N802
        self, request: ReplayDeadLettersRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> ReplayDeadLettersResponse:
        """See agent_service.proto."""
        check(request)
        core, log = self._runtime.core, self._runtime.log
        core.directory.active_tenant(request.tenant)
        after = {"delivery_ids": list(request.delivery_ids)}
        await self._audit.write(
            self._audit.record("ReplayDeadLetters", request.agent, tenant=request.tenant, after=after)
        )
        replayed = await self._runtime.write(
            lambda: log.replay(request.tenant, request.agent, request.delivery_ids), core.dispatcher.replayed
        )
        return ReplayDeadLettersResponse(replayed=len(replayed))
