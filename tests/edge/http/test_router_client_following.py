"""Calls of an edge that knows several routers, of which one owns the log."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import grpc.aio
import pytest
import trunkline_edge.http.router_client
from grpc_status import rpc_status
from trunkline.v1 import catalogue
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
from trunkline_runtime.refusals import to_status
from trunkline_runtime.router_addresses import RouterAddresses

from tests.edge.http.test_router_client import STATS, WATCH
from tests.support.patience import patient, under_load

pytestmark = pytest.mark.io
PATIENCE_S = patient(5)


class FakeRouter(PresenceServiceServicer):
    """Answers while it owns the log, and refuses calls as a standby otherwise."""

    def __init__(self, *, owns: bool) -> None:
        self.owns = owns
        self.address = ""
        self.calls = 0
        #: Status with which an owner ends each call that it has begun.
        self.breaks: grpc.StatusCode | None = None
        self.is_frozen = False
        self.called = asyncio.Event()

    async def GetStats(self, request: GetStatsRequest, context: Any) -> GetStatsResponse:  # noqa: N802
        await self._begin(context)
        return GetStatsResponse()

    async def WatchConnections(self, request: WatchConnectionsRequest, context: Any) -> None:  # noqa: N802
        await self._begin(context)
        await context.write(WatchConnectionsResponse())
        await asyncio.Event().wait()

    async def _begin(self, context: Any) -> None:
        self.calls += 1
        self.called.set()
        if self.is_frozen:
            await asyncio.Event().wait()
        if not self.owns:
            status = to_status(catalogue.ROUTER_STANDBY.refused())
            await context.abort_with_status(rpc_status.to_status(status))
        if self.breaks is not None:
            await context.abort(self.breaks, "because")


@asynccontextmanager
async def running(*routers: FakeRouter) -> AsyncIterator[RouterClient]:
    servers = []
    for router in routers:
        server = grpc.aio.server()
        add_PresenceServiceServicer_to_server(router, server)
        router.address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
        await server.start()
        servers.append(server)
    client = client_of(*(router.address for router in routers))
    try:
        yield client
    finally:
        await client.close()
        for server in servers:
            await server.stop(None)


def client_of(*addresses: str) -> RouterClient:
    return RouterClient(RouterAddresses(",".join(addresses)))


@contextmanager
def silent_address() -> Iterator[str]:
    """An address that accepts connections and answers nothing, as a frozen router does."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"127.0.0.1:{server.getsockname()[1]}"


async def stats(client: RouterClient, **options: Any) -> None:
    await asyncio.wait_for(client.unary(STATS, GetStatsRequest(), **options), PATIENCE_S)


async def failure_of(client: RouterClient, **options: Any) -> CallFailed:
    with pytest.raises(CallFailed) as caught:
        await stats(client, **options)
    return caught.value


async def test_a_call_that_a_standby_refuses_goes_to_the_next_router() -> None:
    standby, owner = FakeRouter(owns=False), FakeRouter(owns=True)
    async with running(standby, owner) as client:
        await stats(client)
        assert (standby.calls, owner.calls) == (1, 1)


async def test_calls_go_to_the_router_that_the_link_uses() -> None:
    standby, owner = FakeRouter(owns=False), FakeRouter(owns=True)
    async with running(standby, owner) as client:
        client._routers.in_use = owner.address
        await stats(client)
        assert (standby.calls, owner.calls) == (0, 1)


async def test_standbys_alone_are_each_called_once_and_the_caller_gets_an_answer_for_clients() -> None:
    standbys = [FakeRouter(owns=False) for _ in range(3)]
    async with running(*standbys) as client:
        failure = await failure_of(client)
        assert (failure.reason, [each.calls for each in standbys]) == ("ROUTER_UNAVAILABLE", [1, 1, 1])


async def test_one_router_that_is_a_standby_is_unavailable_to_clients() -> None:
    async with running(FakeRouter(owns=False)) as client:
        assert (await failure_of(client)).reason == "ROUTER_UNAVAILABLE"


async def test_a_call_goes_on_to_the_next_router_if_there_is_no_connection() -> None:
    owner = FakeRouter(owns=True)
    async with running(owner):
        client = client_of("127.0.0.1:1", owner.address)
        await stats(client)
        await client.close()
        assert owner.calls == 1


async def test_a_router_that_answers_nothing_while_connecting_takes_a_part_of_the_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(trunkline_edge.http.router_client, "CONNECT_TIMEOUT_S", under_load(0.2))
    owner = FakeRouter(owns=True)
    with silent_address() as silent:
        async with running(owner):
            client = client_of(silent, owner.address)
            await stats(client)
            await client.close()


@pytest.mark.parametrize("status", [grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED])
async def test_a_call_that_may_have_been_made_goes_to_no_other_router(status: grpc.StatusCode) -> None:
    breaking, other = FakeRouter(owns=True), FakeRouter(owns=True)
    breaking.breaks = status
    async with running(breaking, other) as client:
        assert (await failure_of(client)).reason == "ROUTER_UNAVAILABLE"
        assert (breaking.calls, other.calls) == (1, 0)


async def test_no_router_at_all_is_unavailable() -> None:
    client = client_of("127.0.0.1:1", "127.0.0.1:2")
    assert (await failure_of(client)).reason == "ROUTER_UNAVAILABLE"
    await client.close()
    assert (await failure_of(client)).reason == "RESTARTING"


async def test_a_stream_that_a_standby_refuses_begins_at_the_next_router() -> None:
    async with running(FakeRouter(owns=False), FakeRouter(owns=True)) as client:
        stream = client.stream(WATCH, WatchConnectionsRequest())
        await asyncio.wait_for(anext(stream), PATIENCE_S)
        await stream.aclose()  # type: ignore[attr-defined]


async def test_a_stream_that_only_standbys_could_serve_fails() -> None:
    async with running(FakeRouter(owns=False), FakeRouter(owns=False)) as client:
        with pytest.raises(CallFailed, match="restarting"):
            await asyncio.wait_for(anext(client.stream(WATCH, WatchConnectionsRequest())), PATIENCE_S)


async def test_a_stream_ends_once_the_edge_is_linked_to_another_router() -> None:
    # The router that it came from may be frozen, and then would never end it.
    first, second = FakeRouter(owns=True), FakeRouter(owns=True)
    async with running(first, second) as client:
        stream = client.stream(WATCH, WatchConnectionsRequest())
        await asyncio.wait_for(anext(stream), PATIENCE_S)
        client.follow_link()
        waiting = asyncio.ensure_future(anext(stream))
        await asyncio.sleep(0)
        assert not waiting.done()
        client._routers.in_use = second.address
        client.follow_link()
        with pytest.raises(CallFailed) as caught:
            await asyncio.wait_for(waiting, PATIENCE_S)
        assert caught.value.reason == "ROUTER_UNAVAILABLE"
        again = client.stream(WATCH, WatchConnectionsRequest())
        await asyncio.wait_for(anext(again), PATIENCE_S)
        assert second.calls == 1
        await again.aclose()  # type: ignore[attr-defined]


async def test_a_call_without_an_answer_ends_once_the_edge_is_linked_to_another_router() -> None:
    first, second = FakeRouter(owns=True), FakeRouter(owns=True)
    first.is_frozen = True
    async with running(first, second) as client:
        waiting = asyncio.ensure_future(failure_of(client))
        await asyncio.wait_for(first.called.wait(), PATIENCE_S)
        client._routers.in_use = second.address
        client.follow_link()
        assert (await waiting).reason == "ROUTER_UNAVAILABLE"
        await stats(client)
        assert (first.calls, second.calls) == (1, 1)
