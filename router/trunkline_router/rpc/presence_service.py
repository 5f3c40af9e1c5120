"""PresenceService: who is connected, for backends."""

from __future__ import annotations

import asyncio
import heapq
from typing import Any

import grpc.aio
from trunkline.v1 import catalogue
from trunkline.v1.presence_service_pb2 import (
    AgentStats,
    CloseConnectionsRequest,
    CloseConnectionsResponse,
    CountConnectionsRequest,
    CountConnectionsResponse,
    GetStatsRequest,
    GetStatsResponse,
    ListConnectionsRequest,
    ListConnectionsResponse,
    ListTopicsRequest,
    ListTopicsResponse,
    WatchConnectionsRequest,
    WatchConnectionsResponse,
)
from trunkline.v1.presence_service_pb2_grpc import PresenceServiceServicer

from trunkline_router.audit_trail import AuditTrail
from trunkline_router.core.directory.connection_counts import count, subscribed_within
from trunkline_router.core.tenants.tenant import Tenant
from trunkline_router.core.validation.validator import check, topic_address
from trunkline_router.core.values.topics import USER, describe, topic_of
from trunkline_router.rpc import streams
from trunkline_router.rpc.status import rpc_method
from trunkline_router.runtime import RouterRuntime

DEFAULT_PAGE = 100


class PresenceServicer(PresenceServiceServicer):
    """Lists, counts, closes and watches connections."""

    def __init__(self, runtime: RouterRuntime, audit: AuditTrail) -> None:
        self._runtime = runtime
        self._audit = audit

    @rpc_method
    async def ListConnections(  # noqa: N802
        self, request: ListConnectionsRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> ListConnectionsResponse:
        """See presence_service.proto."""
        check(request)
        self._tenant(request.address.tenant)
        size = request.page_size or DEFAULT_PAGE
        rest = (
            c for c in self._runtime.core.directory.matching(request.address) if c.id > request.page_token
        )
        found = heapq.nsmallest(size + 1, rest, key=lambda connection: connection.id)
        response = ListConnectionsResponse(connections=[c.to_proto() for c in found[:size]])
        if len(found) > size:
            response.next_page_token = found[size - 1].id
        return response

    @rpc_method
    async def CountConnections(  # noqa: N802
        self, request: CountConnectionsRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> CountConnectionsResponse:
        """See presence_service.proto."""
        check(request)
        self._tenant(request.address.tenant)
        connections, users = count(self._runtime.core.directory, request.address)
        return CountConnectionsResponse(connections=connections, users=users)

    @rpc_method
    async def ListTopics(  # noqa: N802
        self, request: ListTopicsRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> ListTopicsResponse:
        """See presence_service.proto."""
        check(request)
        self._tenant(request.address.tenant)
        scope = topic_of(topic_address(request.address))
        after = topic_of(topic_address(request.after, "after")) if request.HasField("after") else None
        size = request.page_size or DEFAULT_PAGE
        found = subscribed_within(self._runtime.core.directory, scope, after, size + 1)
        response = ListTopicsResponse(more=len(found) > size)
        for topic in found[:size]:
            response.topics.add(address=topic.address, connections=topic.listeners)
        return response

    @rpc_method
    async def GetStats(  # noqa: N802
        self, request: GetStatsRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> GetStatsResponse:
        """See presence_service.proto."""
        check(request)
        tenant = self._tenant(request.tenant)
        heard = [topic.key for topic in self._runtime.core.directory.topics.values() if topic.listeners]
        ours = [key for key in heard if key[0] == tenant.name]
        return GetStatsResponse(
            connections=len(self._runtime.core.directory.connections_of(tenant)),
            users=sum(1 for key in ours if key[3] == USER),
            topics=len(ours),
            agents=await self._agents(tenant),
            messages_committed=tenant.messages_committed,
            connections_opened=tenant.connections_opened,
            connections_closed=tenant.connections_closed,
            open_messages=self._runtime.core.open_messages.count(tenant.name),
            refused=tenant.refused,
            messages_erased=tenant.messages_erased,
        )

    async def _agents(self, tenant: Tenant) -> list[AgentStats]:
        backlogs = {backlog.agent: backlog for backlog in await self._runtime.log.backlogs(tenant.name)}
        queues = {queue.agent: queue for queue in self._runtime.core.agent_queues.of_tenant(tenant.name)}
        agents = []
        policy = self._runtime.core.delivery_policy
        for agent in sorted({*backlogs, *queues, *policy.agents_of(tenant.name)}):
            expired, skipped, overflowed = policy.undelivered(tenant.name, agent)
            stats = AgentStats(agent=agent, expired=expired, skipped=skipped, overflowed=overflowed)
            if queue := queues.get(agent):
                stats.workers = len(queue.workers)
                stats.held = len(queue.held)
                stats.retrying = len(queue.failed)
            if backlog := backlogs.get(agent):
                # Deliveries that are held are unsettled too.
                stats.waiting = max(0, backlog.waiting - stats.held)
                if stats.waiting:
                    stats.oldest_waiting_at.FromMilliseconds(backlog.oldest_ms)
                stats.dead_letters = backlog.dead
            if len(stats.ListFields()) > 1:
                agents.append(stats)
        return agents

    @rpc_method
    async def CloseConnections(  # noqa: N802
        self, request: CloseConnectionsRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> CloseConnectionsResponse:
        """See presence_service.proto."""
        check(request)
        self._tenant(request.address.tenant)
        entry = catalogue.RECONNECT_REQUESTED if request.reconnect else catalogue.CLOSED_BY_BACKEND
        reason = entry.refused(reason=request.reason or "no reason given")
        after: dict[str, object] = {"reason": request.reason, "reconnect": request.reconnect}
        target, tenant = describe(request.address), request.address.tenant
        await self._audit.write(self._audit.record("CloseConnections", target, tenant=tenant, after=after))
        with self._runtime.step() as core:
            found = list(core.directory.matching(request.address))
            for connection in found:
                core.client_outbox.close(connection, reason)
        return CloseConnectionsResponse(connections=len(found))

    @rpc_method
    async def WatchConnections(  # noqa: N802
        self, request: WatchConnectionsRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> None:
        """See presence_service.proto."""
        check(request)
        self._tenant(request.address.tenant)
        runtime = self._runtime
        with runtime.step() as core:
            watcher = core.presence.watch(request.address)
            stream = runtime.open_stream(watcher)

        def take() -> WatchConnectionsResponse | None:
            batch = watcher.take()
            if batch is None and watcher.is_overrun:
                raise catalogue.OVERLOADED.refused(problem="the caller reads changes too slowly")
            return batch

        try:
            await streams.run(stream, _read_nothing(), streams.write_batches(context, stream, take))
        finally:
            core.presence.unwatch(watcher)
            runtime.close_stream(watcher)

    def _tenant(self, name: str) -> Tenant:
        return self._runtime.core.directory.active_tenant(name)


async def _read_nothing() -> None:
    """Stand in for the reader of a stream whose caller sends no more."""
    await asyncio.Event().wait()
