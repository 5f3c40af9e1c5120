"""Failures of a client and a worker: errors tell whether a request may have been carried out."""

from __future__ import annotations

import asyncio

import pytest
from trunkline.v1.frame_pb2 import ErrorFrame
from trunkline_client import ClientSettings, Closed, OutcomeUnknown, TimedOut, Unreachable, Worker

from tests.clients.scripted_edge import ALICE, FakeTime, connected, scripted_edge
from tests.clients.scripted_router import scripted_router
from tests.support.patience import patient


async def test_a_request_that_was_never_sent_is_unreachable() -> None:
    time = FakeTime()
    async with scripted_edge() as edge, connected(edge, edge.client(time)) as (client, side):
        side.abort()
        await edge.accept()
        with pytest.raises(Unreachable, match="no connection for the request"):
            await client.send("hello", timeout_s=0.05)


async def test_a_request_that_was_sent_times_out_unless_it_reads() -> None:
    async with scripted_edge() as edge, connected(edge, edge.client()) as (client, side):
        with pytest.raises(TimedOut):
            await client.send("hello", timeout_s=0.05)
        await side.read()
        with pytest.raises(Unreachable):
            await client.ping(timeout_s=0.05)
        with pytest.raises(Unreachable):
            await client.read_history(timeout_s=0.05)


async def test_a_request_that_was_sent_before_a_break_times_out() -> None:
    time = FakeTime()
    async with scripted_edge() as edge, connected(edge, edge.client(time)) as (client, side):
        sending = asyncio.create_task(client.send("hello", timeout_s=0.3))
        await side.read()
        side.abort()
        with pytest.raises(TimedOut):
            await sending


async def test_a_request_that_was_not_sent_when_the_client_ends_raises_its_end() -> None:
    time = FakeTime()
    settings = ClientSettings(close_timeout_s=0.01)
    async with scripted_edge() as edge:
        client = edge.client(time, settings=settings)
        async with connected(edge, client) as (_, side):
            sent = asyncio.create_task(client.send("sent"))
            await side.read()
            side.abort()
            await edge.accept()
            unsent = asyncio.create_task(client.send("unsent"))
            reading = asyncio.create_task(client.read_history())
            await asyncio.sleep(0.01)
        with pytest.raises(OutcomeUnknown):
            await sent
        with pytest.raises(Closed):
            await unsent
        with pytest.raises(Closed):
            await reading


async def test_an_internal_error_of_the_edge_leaves_the_outcome_unknown() -> None:
    async with scripted_edge() as edge, connected(edge, edge.client()) as (client, side):
        sending = asyncio.create_task(client.send("hello", id="x"))
        await side.read()
        await side.send(error=ErrorFrame(id="x", code="INTERNAL", message="it broke", retryable=True))
        with pytest.raises(OutcomeUnknown, match="it broke"):
            await sending


async def test_stopping_a_worker_leaves_the_outcome_of_an_open_message_unknown() -> None:
    async with scripted_router() as router, asyncio.timeout(patient(10)):
        worker = Worker(router.address, tenant="demo", agents=["echo"], clock=FakeTime().clock)
        running = asyncio.create_task(worker.run(lambda message: None))
        side = await router.stream()
        await side.welcome()

        async def write() -> None:
            async with worker.open_message(ALICE) as out:
                await out.write("x")
                running.cancel()
                await asyncio.Event().wait()

        writing = asyncio.create_task(write())
        await side.open_reply()
        with pytest.raises(OutcomeUnknown, match="stopped"):
            await writing
        await asyncio.wait({running})
