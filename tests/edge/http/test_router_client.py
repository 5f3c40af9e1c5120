"""Calls to routers that respond, refuse, hang or are down."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import grpc
import grpc.aio
import pytest
from google.protobuf.descriptor import MethodDescriptor
from google.rpc.error_details_pb2 import ErrorInfo
from trunkline.v1 import history_service_pb2, presence_service_pb2
from trunkline.v1.presence_service_pb2 import (
    GetStatsRequest,
    GetStatsResponse,
    WatchConnectionsRequest,
    WatchConnectionsResponse,
)
from trunkline.v1.presence_service_pb2_grpc import (
    PresenceServiceServicer,
    add_PresenceServiceServicer_to_server,
)
from trunkline_edge.http.router_client import CallFailed, RouterClient
from trunkline_edge.http_errors import http_status
from trunkline_runtime.refusals import details_of
from trunkline_runtime.router_addresses import RouterAddresses

from tests.support.patience import patient, under_load

pytestmark = pytest.mark.io
PATIENCE_S = patient(5)


def method(module: Any, service: str, name: str) -> MethodDescriptor:
    found: MethodDescriptor = module.DESCRIPTOR.services_by_name[service].methods_by_name[name]
    return found


STATS = method(presence_service_pb2, "PresenceService", "GetStats")
WATCH = method(presence_service_pb2, "PresenceService", "WatchConnections")
MESSAGE = method(history_service_pb2, "HistoryService", "GetMessage")


class ScriptedPresence(PresenceServiceServicer):
    """Counts calls of GetStats, which run a script; WatchConnections streams endlessly."""

    def __init__(self) -> None:
        self.calls = 0
        self.metadata: dict[str, str] = {}
        self.came = asyncio.Event()
        self.ended = asyncio.Event()
        self.then: Callable[[Any], Any] = self.nothing

    async def nothing(self, context: Any) -> None:
        """Respond."""

    async def silence(self, context: Any) -> None:
        """Never respond."""
        await asyncio.Event().wait()

    async def GetStats(self, request: GetStatsRequest, context: Any) -> GetStatsResponse:  # noqa: N802
        self.calls += 1
        self.metadata = dict(context.invocation_metadata())
        self.came.set()
        await self.then(context)
        return GetStatsResponse(connections=7)

    async def WatchConnections(self, request: WatchConnectionsRequest, context: Any) -> None:  # noqa: N802
        try:
            await context.write(WatchConnectionsResponse())
            await self.silence(context)
        finally:
            self.ended.set()


@asynccontextmanager
async def router() -> AsyncIterator[tuple[ScriptedPresence, RouterClient]]:
    server, presence = grpc.aio.server(), ScriptedPresence()
    add_PresenceServiceServicer_to_server(presence, server)
    calls = RouterClient(RouterAddresses(f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"))
    await server.start()
    try:
        yield presence, calls
    finally:
        await calls.close()
        await server.stop(None)


async def failed(calls: RouterClient, called: MethodDescriptor = STATS, **options: Any) -> CallFailed:
    """The CallFailed of a call."""
    with pytest.raises(CallFailed) as caught:
        await asyncio.wait_for(calls.unary(called, GetStatsRequest(tenant="t"), **options), PATIENCE_S)
    return caught.value


async def test_an_answer_is_the_message_and_metadata_goes_along() -> None:
    async with router() as (presence, calls):
        answer = await calls.unary(STATS, GetStatsRequest(), metadata=[("authorization", "Bearer x")])
        assert answer == GetStatsResponse(connections=7)
        assert presence.metadata["authorization"] == "Bearer x"


async def test_a_router_that_is_not_there_is_unavailable() -> None:
    calls = RouterClient(RouterAddresses("127.0.0.1:1"))
    failure = await failed(calls)
    assert (failure.status.code, *details_of(failure.status)) == (14, "ROUTER_UNAVAILABLE", 1000)
    assert failure.status.message == str(failure) == "The service is starting or restarting; try again"
    await calls.close()


async def test_a_call_without_an_answer_ends_in_time_and_was_made_once() -> None:
    async with router() as (presence, calls):
        presence.then = presence.silence
        failure = await failed(calls, timeout_s=under_load(0.2))
        assert (failure.status.code, failure.reason, http_status(failure.status)) == (
            4,
            "DEADLINE_EXCEEDED",
            504,
        )
        assert presence.calls == 1


@pytest.mark.parametrize(
    ("code", "reason", "status"),
    [
        (grpc.StatusCode.UNAVAILABLE, "ROUTER_UNAVAILABLE", 503),
        (grpc.StatusCode.CANCELLED, "ROUTER_UNAVAILABLE", 503),
        (grpc.StatusCode.INTERNAL, "INTERNAL", 500),
        (grpc.StatusCode.UNKNOWN, "INTERNAL", 500),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, "RESOURCE_EXHAUSTED", 429),
        (grpc.StatusCode.PERMISSION_DENIED, "PERMISSION_DENIED", 403),
    ],
)
async def test_a_status_without_details_is_passed_on_and_never_retried(
    code: grpc.StatusCode, reason: str, status: int
) -> None:
    async with router() as (presence, calls):
        presence.then = lambda context: context.abort(code, "because")
        failure = await failed(calls)
        assert (failure.reason, http_status(failure.status)) == (reason, status)
        assert presence.calls == 1
        info = ErrorInfo()
        assert failure.status.details[0].Unpack(info)
        assert info.reason == reason


async def test_a_router_that_lacks_a_call_is_older() -> None:
    async with router() as (_, calls):
        failure = await failed(calls, MESSAGE)
        assert (failure.status.code, failure.reason, http_status(failure.status)) == (
            12,
            "UNIMPLEMENTED",
            501,
        )


async def test_details_that_cannot_be_read_are_left_out() -> None:
    async with router() as (presence, calls):
        broken = (("grpc-status-details-bin", b"\xff\xff"),)
        presence.then = lambda context: context.abort(grpc.StatusCode.NOT_FOUND, "gone", broken)
        failure = await failed(calls)
        assert (failure.status.code, failure.reason, failure.status.message) == (5, "NOT_FOUND", "gone")


async def test_closing_ends_the_calls_under_way_and_later_ones() -> None:
    async with router() as (presence, calls):
        presence.then = presence.silence
        under_way = asyncio.create_task(failed(calls))
        await asyncio.wait_for(presence.came.wait(), PATIENCE_S)
        await calls.close()
        assert (await under_way).reason == "RESTARTING"
        assert (await failed(calls)).reason == "RESTARTING"
        assert presence.calls == 1


async def test_a_caller_that_is_cancelled_is_cancelled() -> None:
    async with router() as (presence, calls):
        presence.then = presence.silence
        caller = asyncio.create_task(calls.unary(STATS, GetStatsRequest()))
        await asyncio.wait_for(presence.came.wait(), PATIENCE_S)
        caller.cancel()
        with pytest.raises(asyncio.CancelledError):
            await caller


async def test_a_stream_is_cancelled_with_its_iterator() -> None:
    async with router() as (presence, calls):
        stream = calls.stream(WATCH, WatchConnectionsRequest())
        assert await asyncio.wait_for(anext(stream), PATIENCE_S) == WatchConnectionsResponse()
        await stream.aclose()  # type: ignore[attr-defined]
        await asyncio.wait_for(presence.ended.wait(), PATIENCE_S)


async def test_a_stream_of_a_router_that_is_not_there_fails() -> None:
    calls = RouterClient(RouterAddresses("127.0.0.1:1"))
    with pytest.raises(CallFailed) as caught:
        await anext(calls.stream(WATCH, WatchConnectionsRequest()))
    assert caught.value.reason == "ROUTER_UNAVAILABLE"
    await calls.close()


async def test_closing_ends_a_stream() -> None:
    async with router() as (_, calls):
        stream = calls.stream(WATCH, WatchConnectionsRequest())
        await asyncio.wait_for(anext(stream), PATIENCE_S)
        waiting = asyncio.ensure_future(anext(stream))
        await asyncio.sleep(0)
        await calls.close()
        with pytest.raises(CallFailed) as caught:
            await asyncio.wait_for(waiting, PATIENCE_S)
        assert caught.value.reason == "RESTARTING"
