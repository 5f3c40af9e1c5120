"""Backends, publishers and workers that know several routers, of which one owns the log."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from typing import Any

import grpc
import pytest
from trunkline.v1 import catalogue
from trunkline.v1.broadcast_service_pb2 import BroadcastResponse
from trunkline.v1.presence_service_pb2 import GetStatsResponse, WatchConnectionsResponse
from trunkline_client import Backend, OutcomeUnknown, Refused, Unreachable, Worker

from tests.clients.scripted_edge import ALICE, FakeTime
from tests.clients.scripted_router import ScriptedRouter, StreamSide, scripted_router
from tests.clients.scripted_worker import echo, read_settled
from tests.clients.test_backend import answer, read, request
from tests.support.patience import patient


def is_standby(router: ScriptedRouter) -> None:
    """Refuses unary calls from now on."""
    router.answers |= dict.fromkeys(("Broadcast", "GetStats"), lambda _: catalogue.ROUTER_STANDBY)


def is_owner(router: ScriptedRouter) -> None:
    """Answers unary calls from now on."""
    router.answers["Broadcast"] = lambda _: BroadcastResponse(message_id=router.address)
    router.answers["GetStats"] = lambda _: GetStatsResponse()


@asynccontextmanager
async def two_routers(
    time: FakeTime | None = None,
) -> AsyncIterator[tuple[ScriptedRouter, ScriptedRouter, Backend]]:
    """A standby, an owner, and a backend that knows both."""
    async with scripted_router() as standby, scripted_router() as owner:
        is_standby(standby)
        is_owner(owner)
        clock = (time or FakeTime()).clock
        async with (
            Backend(f"{standby.address},{owner.address}", timeout_s=5.0, clock=clock) as ours,
            asyncio.timeout(patient(20)),
        ):
            yield standby, owner, ours


async def test_a_call_that_a_standby_refuses_goes_to_the_owner_and_later_ones_go_there_first() -> None:
    async with two_routers() as (standby, owner, ours):
        assert (await ours.broadcast(ALICE, "hello")).message_id == owner.address
        await ours.get_stats("demo")
        assert (len(standby.requests), len(owner.requests)) == (1, 2)


async def test_calls_made_at_once_reach_the_owner_once_each() -> None:
    async with two_routers() as (_, owner, ours):
        answers = await asyncio.gather(*(ours.broadcast(ALICE, str(n)) for n in range(20)))
        assert {each.message_id for each in answers} == {owner.address}
        assert len(owner.requests) == 20


async def test_a_call_goes_on_if_there_is_no_connection_and_follows_the_owner_back() -> None:
    async with scripted_router() as gone:
        pass
    async with scripted_router() as owner, Backend(f"{gone.address},{owner.address}") as ours:
        is_owner(owner)
        assert (await ours.broadcast(ALICE, "hello")).message_id == owner.address
        is_standby(owner)
        async with scripted_router(gone.address) as back, asyncio.timeout(patient(10)):
            is_owner(back)
            while True:
                try:
                    assert (await ours.broadcast(ALICE, "hello")).message_id == back.address
                    break
                except Unreachable:
                    await asyncio.sleep(0.05)


async def test_a_call_without_any_owner_names_the_problem_of_each_router_and_may_be_made_again() -> None:
    async with two_routers() as (standby, owner, ours):
        is_standby(owner)
        with pytest.raises(Unreachable) as failed:
            await ours.broadcast(ALICE, "hello")
        assert failed.value.retryable
        for router in (standby, owner):
            assert f"{router.address}: This router is a standby" in str(failed.value)
            assert len(router.requests) == 1


async def test_one_router_that_is_a_standby_refuses_the_call() -> None:
    async with scripted_router() as standby, Backend(standby.address) as ours:
        is_standby(standby)
        with pytest.raises(Refused) as refused:
            await ours.broadcast(ALICE, "hello")
        assert (refused.value.code, refused.value.retryable) == ("ROUTER_STANDBY", True)


@pytest.mark.parametrize("status", [grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.UNKNOWN])
async def test_a_call_that_may_have_been_carried_out_is_not_repeated(status: Any) -> None:
    async with two_routers() as (first, second, ours):
        first.answers["Broadcast"] = lambda _: status
        with pytest.raises(OutcomeUnknown, match=first.address):
            await ours.broadcast(ALICE, "hello")
        assert (len(first.requests), len(second.requests)) == (1, 0)
        # The next call tries the other router first.
        await ours.broadcast(ALICE, "hello")
        assert (len(first.requests), len(second.requests)) == (1, 1)


async def test_a_rejection_by_the_owner_is_final() -> None:
    async with two_routers() as (first, second, ours):
        first.answers["Broadcast"] = lambda _: catalogue.OVERLOADED
        with pytest.raises(Refused) as refused:
            await ours.broadcast(ALICE, "hello")
        assert (refused.value.code, second.requests) == ("OVERLOADED", [])


async def test_a_watch_begins_at_the_owner_and_a_new_one_at_the_next_router() -> None:
    async with two_routers() as (standby, owner, ours):
        async with aclosing(ours.watch_connections(ALICE)) as changes:
            first = asyncio.ensure_future(anext(changes))
            (await standby.stream()).end(catalogue.ROUTER_STANDBY)
            side = await owner.stream()
            await side.write(WatchConnectionsResponse())
            assert await first == []
            side.end(grpc.StatusCode.UNAVAILABLE)
            with pytest.raises(Unreachable, match=owner.address):
                await anext(changes)
        async with aclosing(ours.watch_connections(ALICE)) as changes:
            again = asyncio.ensure_future(anext(changes))
            await (await standby.stream()).write(WatchConnectionsResponse())
            assert await again == []


async def test_a_publisher_loses_nothing_to_a_standby_and_follows_without_a_wait() -> None:
    time = FakeTime()
    async with two_routers(time) as (standby, owner, ours), ours.publisher() as publisher:
        tickets = [publisher.publish(request(key)) for key in ("a", "", "b")]
        side = await standby.stream()
        await read(side, 3)
        side.end(catalogue.ROUTER_STANDBY)
        side = await owner.stream()
        assert await read(side, 3) == [(1, "a"), (2, ""), (3, "b")]
        await answer(side, 1, 2, 3)
        assert [(await ticket).message_id for ticket in tickets] == ["m1", "m2", "m3"]
        assert max(time.waits) == 0.0


async def test_a_worker_passes_over_a_standby_and_follows_the_owner(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="trunkline_client")
    time = FakeTime()
    async with asyncio.timeout(patient(20)), scripted_router() as first, scripted_router() as second:
        worker = Worker(f"{first.address},{second.address}", tenant="demo", agents=["echo"], clock=time.clock)
        running = asyncio.create_task(worker.run(echo))
        (await first.stream()).end(catalogue.ROUTER_STANDBY)
        side = await second.stream()
        await side.welcome()
        await side.deliver(1)
        assert await read_settled(side) == {1: ["You said: 1"]}
        side.end(grpc.StatusCode.UNAVAILABLE)
        side = await first.stream()
        await side.welcome()
        await side.deliver(2)
        assert await read_settled(side) == {2: ["You said: 2"]}
        running.cancel()
        await asyncio.wait({running})
    lines = [each.getMessage() for each in caplog.records]
    assert [line.partition(":")[0] for line in lines] == [
        "attached to router r1 at 127.0.0.1",
        "not attached to 127.0.0.1",
        "attached to router r1 at 127.0.0.1",
    ]
    assert lines[0].endswith(second.address)
    assert second.address in lines[1]
    assert lines[2].endswith(first.address)


@asynccontextmanager
async def attached_to_the_first() -> AsyncIterator[tuple[ScriptedRouter, ScriptedRouter, StreamSide]]:
    """A worker that knows two routers, attached to the first one, which owns the log."""
    async with asyncio.timeout(patient(20)), scripted_router() as first, scripted_router() as second:
        await first.report(True)
        await second.report(False)
        routers = f"{first.address},{second.address}"
        worker = Worker(routers, tenant="demo", agents=["echo"], clock=FakeTime().clock)
        running = asyncio.create_task(worker.run(echo))
        side = await first.stream()
        await side.welcome()
        try:
            yield first, second, side
        finally:
            running.cancel()
            await asyncio.wait({running})


async def test_a_worker_leaves_a_router_that_keeps_its_stream_without_owning_the_log() -> None:
    async with attached_to_the_first() as (first, second, side):
        await first.report(False)
        assert not side.over.done()
        await second.report(True)
        side = await second.stream()
        await side.welcome()
        await side.deliver(1)
        assert await read_settled(side) == {1: ["You said: 1"]}


async def test_a_worker_stays_with_an_owner_while_one_that_was_frozen_reports_that_it_owns_the_log() -> None:
    async with attached_to_the_first() as (_, second, side):
        await second.report(True)
        await asyncio.sleep(0.2)
        await side.deliver(1)
        assert await read_settled(side) == {1: ["You said: 1"]}


async def test_a_publisher_leaves_a_router_that_keeps_its_stream_without_owning_the_log() -> None:
    async with two_routers() as (first, second, ours), ours.publisher() as publisher:
        await first.report(False)
        tickets = [publisher.publish(request(key)) for key in ("a", "")]
        await read(await first.stream(), 2)
        await second.report(True)
        side = await second.stream()
        assert await read(side, 1) == [(1, "a")]
        await answer(side, 1)
        assert (await tickets[0]).message_id == "m1"
        with pytest.raises(OutcomeUnknown, match="idempotency key"):
            await tickets[1]
