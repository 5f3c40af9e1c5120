"""A worker against a scripted router."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from trunkline.v1 import catalogue
from trunkline.v1.agent_service_pb2 import AttachResponse, SettlementResult
from trunkline.v1.error_pb2 import Error
from trunkline_client import Handler, Message, Refused, Reject, Reply, RetryLater, Worker, text, text_of
from trunkline_client.settlement import settlement_for_result

from tests.clients.scripted_edge import FakeTime, eventually
from tests.clients.scripted_router import ScriptedRouter, StreamSide, scripted_router
from tests.support.patience import patient


def worker_of(router: ScriptedRouter, time: FakeTime | None = None, **options: Any) -> Worker:
    """A worker of this router, with fake time."""
    clock = (time or FakeTime()).clock
    return Worker(router.address, tenant="demo", agents=["echo"], capacity=8, clock=clock, **options)


@asynccontextmanager
async def attached(
    handler: Handler, time: FakeTime | None = None
) -> AsyncIterator[tuple[ScriptedRouter, StreamSide]]:
    """An attached worker and the router's side; cancels the worker."""
    async with scripted_router() as router:
        running = asyncio.create_task(worker_of(router, time).run(handler))
        side = await router.stream()
        await side.welcome()
        try:
            yield router, side
        finally:
            running.cancel()
            await asyncio.wait({running})
            assert running.cancelled()


async def read_settled(side: StreamSide) -> dict[int, list[str]]:
    """Reads the next settlements; returns the texts of the replies by delivery."""
    batch = await side.read()
    while not batch.settlements:
        batch = await side.read()
    return {
        each.delivery_id: ["".join(part.text.text for part in reply.parts) for reply in each.replies]
        for each in batch.settlements
    }


def echo(message: Message) -> str:
    return f"You said: {text_of(message)}"


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
    async with attached(echo) as (_, side):
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

    async with attached(answer) as (_, side):
        await side.deliver(1, 2)
        assert await read_settled(side) == {2: ["2"]}
        gate.set()
        assert await read_settled(side) == {1: ["1"]}


async def test_a_failed_handler_is_retried_and_logs_one_line(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def answer(message: Message) -> str:
        if text_of(message) == "1":
            raise RuntimeError("no model")
        return "ok"

    def answer_at_once(message: Message) -> str:
        if text_of(message) == "1":
            raise RuntimeError("no model")
        return "ok"

    for handler in (answer, answer_at_once):
        caplog.clear()
        async with attached(handler) as (_, side):
            await side.deliver(1, 2, attempt=3)
            settlements = await side.read_until("settlements")
            while len(settlements) < 2:
                settlements += await side.read_until("settlements")
            (failed,) = [each for each in settlements if each.delivery_id == 1]
            assert (failed.retry.after_ms, failed.retry.reason) == (4000, "RuntimeError: no model")
            (done,) = [each for each in settlements if each.delivery_id == 2]
            assert done.WhichOneof("outcome") is None
        ours = [each for each in caplog.records if each.name == "trunkline_client"]
        (record,) = [each for each in ours if each.levelno == logging.ERROR]
        assert "m1" in record.getMessage()
        assert "no model" in record.getMessage()
        assert record.exc_info is None


async def test_leases_are_extended_three_times_per_lease_in_one_batch() -> None:
    gate = asyncio.Event()
    time = FakeTime()

    handled = asyncio.Semaphore(0)

    async def answer(message: Message) -> None:
        handled.release()
        await gate.wait()

    async with attached(answer, time) as (_, side):
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


async def test_a_redelivery_during_handling_is_handled_once() -> None:
    gate = asyncio.Event()
    calls = 0

    async def answer(message: Message) -> str:
        nonlocal calls
        calls += 1
        await gate.wait()
        return "done"

    async with attached(answer) as (_, side):
        # In one batch, so that both arrive before the handler can continue.
        await side.deliver(1, 1)
        gate.set()
        assert await read_settled(side) == {1: ["done"]}
        assert calls == 1


async def test_handlers_outlive_a_broken_stream_and_settle_redeliveries() -> None:
    gate = asyncio.Event()
    calls: list[str] = []

    async def answer(message: Message) -> str:
        calls.append(text_of(message))
        await gate.wait()
        return text_of(message)

    async with attached(answer) as (router, side):
        await side.deliver(1)
        await side.deliver(2)
        await eventually(lambda: len(calls) == 2)
        side.end()
        again = await router.stream()
        await again.welcome()
        await again.deliver(2, attempt=2)
        gate.set()
        assert await read_settled(again) == {2: ["2"]}
        await again.deliver(1, attempt=2)
        assert await read_settled(again) == {1: ["1"]}
        assert calls == ["1", "2"]


async def test_a_handler_is_cancelled_unless_redelivered_within_a_lease() -> None:
    time = FakeTime()
    cancelled = asyncio.Event()

    async def answer(message: Message) -> str:
        if text_of(message) == "1":
            return "1"
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.set()
            raise
        return ""

    async with attached(answer, time) as (router, side):
        await side.deliver(1, 2)
        assert await read_settled(side) == {1: ["1"]}
        side.end()
        again = await router.stream()
        await again.welcome(lease_s=12)
        await time.wait_for_sleep(12)
        time.advance(12)
        await cancelled.wait()
        await again.deliver(1, attempt=2)
        assert await read_settled(again) == {1: ["1"]}


async def test_a_settlement_rejected_for_now_is_resent() -> None:
    time = FakeTime()
    async with attached(echo, time) as (_, side):
        await side.deliver(1)
        assert await read_settled(side) == {1: ["You said: 1"]}
        error = Error(code="LOG_UNAVAILABLE", message="not now", retryable=True)
        await side.write(AttachResponse(results=[SettlementResult(delivery_id=1, error=error)]))
        await side.deliver(2)
        assert await read_settled(side) == {2: ["You said: 2"]}
        await time.wait_for_sleep(10)
        time.advance(10)
        assert await read_settled(side) == {1: ["You said: 1"]}


async def test_replies_rejected_for_good_count_as_a_failure() -> None:
    async with attached(echo) as (_, side):
        await side.deliver(1)
        await read_settled(side)
        error = Error(code="INVALID_ARGUMENT", message="parts: too many")
        await side.write(AttachResponse(results=[SettlementResult(delivery_id=1, error=error)]))
        (failed,) = await side.read_until("settlements")
        assert "parts: too many" in failed.retry.reason


async def test_a_handler_may_retry_or_reject_its_message() -> None:
    async def answer(message: Message) -> str:
        match text_of(message):
            case "1":
                raise RetryLater(2.5, "the model is busy")
            case _:
                raise Reject("spam")

    def answer_at_once(message: Message) -> str:
        raise RetryLater(2.5, "the model is busy") if text_of(message) == "1" else Reject("spam")

    for handler in (answer, answer_at_once):
        async with attached(handler) as (_, side):
            await side.deliver(1, 2)
            settlements = await side.read_until("settlements")
            while len(settlements) < 2:
                settlements += await side.read_until("settlements")
            later, given_up = sorted(settlements, key=lambda each: each.delivery_id)
            assert (later.retry.after_ms, later.retry.reason) == (2500, "the model is busy")
            assert given_up.reject.reason == "spam"


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


async def test_a_rejected_settlement_is_logged_and_the_worker_continues(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with attached(echo) as (_, side):
        error = Error(code="DELIVERY_NOT_HELD", message="Delivery 7 is not held")
        await side.write(AttachResponse(results=[SettlementResult(delivery_id=7, error=error)]))
        await side.deliver(1)
        await read_settled(side)
    assert "Delivery 7 is not held" in caplog.text


async def test_a_final_rejection_is_raised() -> None:
    async with scripted_router() as router:
        running = asyncio.create_task(worker_of(router).run(echo))
        side = await router.stream()
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


def test_a_handler_may_return_one_reply_several_or_none() -> None:
    (part,) = text("a")
    assert not settlement_for_result(1, None).replies
    for returned in ("a", part, Reply(parts=[part]), ["a"], [part], [Reply(parts=[part])]):
        assert settlement_for_result(1, returned).replies[0] == Reply(parts=[part])
    assert len(settlement_for_result(1, ["a", "b"]).replies) == 2
    with pytest.raises(TypeError, match="not int"):
        settlement_for_result(1, [7])  # type: ignore[list-item]


async def test_a_worker_without_a_handler_raises_runtime_error() -> None:
    async with scripted_router() as router:
        with pytest.raises(RuntimeError, match="needs a handler"):
            await worker_of(router).run()
