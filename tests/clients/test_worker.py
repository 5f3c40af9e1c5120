"""A worker against a scripted router, from attaching to draining."""

from __future__ import annotations

import asyncio
import logging

import pytest
from trunkline.v1 import catalogue
from trunkline_client import Message, Refused, text_of

from tests.clients.scripted_edge import FakeTime, eventually
from tests.clients.scripted_router import scripted_router
from tests.clients.scripted_worker import echo, read_settled, serving, worker_of
from tests.support.patience import patient


async def test_a_worker_introduces_itself() -> None:
    async with scripted_router() as router:
        welcomes: list[str] = []
        worker = worker_of(router, worker_id="w1", on_attached=lambda each: welcomes.append(each.router_id))
        running = asyncio.create_task(worker.run(echo))
        side = await router.stream()
        hello = await side.welcome()
        assert (hello.tenant, list(hello.agents), hello.capacity, hello.worker_id, hello.contract_minor) == (
            "demo",
            ["echo"],
            8,
            "w1",
            catalogue.CONTRACT_MINOR,
        )
        await side.deliver(1)
        await read_settled(side)
        assert welcomes == ["r1"]
        running.cancel()
        await asyncio.wait({running})


async def test_results_of_a_plain_function_are_settled_in_one_batch() -> None:
    async with serving(echo) as (_, side):
        await side.deliver(1, 2, 3)
        assert await read_settled(side) == {
            1: ["You said: 1"],
            2: ["You said: 2"],
            3: ["You said: 3"],
        }


async def test_a_coroutine_function_may_wait_while_others_are_handled() -> None:
    gate = asyncio.Event()

    async def answer(message: Message) -> str:
        if text_of(message) == "1":
            await gate.wait()
        return text_of(message)

    async with serving(answer) as (_, side):
        await side.deliver(1, 2)
        assert await read_settled(side) == {2: ["2"]}
        gate.set()
        assert await read_settled(side) == {1: ["1"]}


async def test_leases_are_extended_three_times_per_lease_in_one_batch() -> None:
    gate = asyncio.Event()
    time = FakeTime()

    handled = asyncio.Semaphore(0)

    async def answer(message: Message) -> None:
        handled.release()
        await gate.wait()

    async with serving(answer, time) as (_, side):
        await side.deliver(1, 2)
        # Written is not received: advance time once the worker holds both.
        async with asyncio.timeout(patient(5)):
            await handled.acquire()
            await handled.acquire()
        await time.wait_for_sleep(10)
        time.advance(10)
        assert sorted((await side.read()).extend) == [1, 2]
        gate.set()
        assert await read_settled(side) == {1: [], 2: []}
        await time.wait_for_sleep(10)
        time.advance(10)
        sign_of_life = await side.read()
        assert not sign_of_life.extend
        assert not sign_of_life.settlements


async def test_a_drained_worker_settles_its_deliveries_and_ends() -> None:
    gate = asyncio.Event()

    async def answer(message: Message) -> str:
        await gate.wait()
        return "done"

    async with scripted_router() as router:
        worker = worker_of(router)
        running = asyncio.create_task(worker.run(answer))
        side = await router.stream()
        await side.welcome()
        await side.deliver(1)
        await eventually(lambda: worker._table._deliveries)
        draining = asyncio.create_task(worker.drain(5))
        assert (await side.read()).drain
        assert not draining.done()
        gate.set()
        assert await read_settled(side) == {1: ["done"]}
        await side.confirm(1)
        assert await draining
        await running


@pytest.mark.parametrize("breaks", [True, False])
async def test_draining_ends_in_time_or_with_the_stream(breaks: bool) -> None:
    async def answer(message: Message) -> None:
        await asyncio.Event().wait()

    time = FakeTime()
    async with scripted_router() as router:
        worker = worker_of(router, time)
        running = asyncio.create_task(worker.run(answer))
        side = await router.stream()
        await side.welcome()
        await side.deliver(1)
        await eventually(lambda: worker._table._deliveries)
        draining = asyncio.create_task(worker.drain(5))
        assert (await side.read()).drain
        if breaks:
            side.end()
        else:
            await time.wait_for_sleep(5)
            time.advance(5)
        assert not await draining
        await running


async def test_heartbeats_follow_the_shorter_lease() -> None:
    time = FakeTime()
    async with scripted_router() as router:
        running = asyncio.create_task(worker_of(router, time).run(echo))
        side = await router.stream()
        await side.welcome(lease_s=30, reply_lease_s=15)
        await time.wait_for_sleep(5)
        running.cancel()
        await asyncio.wait({running})


async def test_a_final_rejection_is_raised() -> None:
    async with scripted_router() as router:
        running = asyncio.create_task(worker_of(router).run(echo))
        side = await router.stream()
        # A status that arrives while the client still writes would be lost in gRPC's client.
        await side.read()
        side.end(catalogue.UNKNOWN_TENANT)
        with pytest.raises(Refused) as refused:
            await running
        assert (refused.value.code, refused.value.retryable) == ("UNKNOWN_TENANT", False)


async def test_a_worker_waits_for_an_absent_router_and_warns_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    time = FakeTime()
    time.jitter = 1.0
    async with scripted_router() as router:
        pass
    running = asyncio.create_task(worker_of(router, time).run(echo))
    for wait_s in (0.1, 0.2, 0.4):
        await time.wait_for_sleep(wait_s)
        time.advance(wait_s)
    await time.wait_for_sleep(0.8)
    running.cancel()
    await asyncio.wait({running})
    assert (
        len(
            [
                each
                for each in caplog.records
                if each.name == "trunkline_client" and each.levelno == logging.WARNING
            ]
        )
        == 1
    )


async def test_cancelling_a_worker_leaves_no_task() -> None:
    async with scripted_router() as router:
        before = asyncio.all_tasks()

        async def answer(message: Message) -> None:
            await asyncio.Event().wait()

        running = asyncio.create_task(worker_of(router).run(answer))
        side = await router.stream()
        await side.welcome()
        await side.deliver(1, 2, 3)
        running.cancel()
        await asyncio.wait({running})
        left = {task for task in asyncio.all_tasks() - before if "grpc" not in repr(task)}
        assert not left


async def test_a_worker_without_a_handler_raises_runtime_error() -> None:
    async with scripted_router() as router:
        with pytest.raises(RuntimeError, match="needs a handler"):
            await worker_of(router).run()
