"""Handlers whose readers cancel, or whose delivery is lost, wherever they wait."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any

import pytest
from trunkline.v1.agent_service_pb2 import AttachResponse, ReplyEnded, ReplyOpened, ReplyProgress
from trunkline.v1.error_pb2 import Error
from trunkline.v1.message_pb2 import (
    MESSAGE_STATE_CANCELLED,
    MESSAGE_STATE_COMPLETE,
    MESSAGE_STATE_EXPIRED,
    MESSAGE_STATE_FAILED,
    MESSAGE_STATE_OPEN,
    Part,
    ReasoningPart,
)
from trunkline_client import Fenced, Message, ReplyCancelled, ReplyExpired, RetryLater, StreamedReply

from tests.clients.scripted_edge import FakeTime, eventually
from tests.clients.scripted_worker import attached, read_settlement

CANCEL = AttachResponse(cancelled=[1])


class SlowSource:
    """A generator that yields once, and then waits for ever."""

    def __init__(self) -> None:
        self.raised: BaseException | None = None
        self.closed = asyncio.Event()

    async def __call__(self) -> AsyncIterator[str]:
        try:
            yield "so far"
            await asyncio.Event().wait()
        except BaseException as error:
            self.raised = error
            raise
        finally:
            await asyncio.sleep(0)
            self.closed.set()


Writes = Callable[[StreamedReply, SlowSource], Awaitable[None]]


async def iterate(out: StreamedReply, source: SlowSource) -> None:
    async for piece in source():
        await out.write(piece)


async def iterate_with_a_timeout(out: StreamedReply, source: SlowSource) -> None:
    async with asyncio.timeout(3600):
        await iterate(out, source)


async def iterate_in_a_task(out: StreamedReply, source: SlowSource) -> None:
    async with asyncio.TaskGroup() as group:
        group.create_task(iterate(out, source))  # type: ignore[arg-type]


async def iterate_and_swallow(out: StreamedReply, source: SlowSource) -> None:
    try:
        await iterate(out, source)
    except BaseException:
        with pytest.raises(ReplyCancelled):
            await out.write("Sorry")
        with pytest.raises(ReplyCancelled):
            await out.write("Sorry")


async def iterate_and_replace_the_exception(out: StreamedReply, source: SlowSource) -> None:
    try:
        await iterate(out, source)
    except BaseException as error:
        raise RuntimeError("the model failed") from error


async def write_from(out: StreamedReply, source: SlowSource) -> None:
    await out.write_from(source())


@pytest.mark.parametrize("by", ["delivery", "reply", "both", "twice"])
@pytest.mark.parametrize(
    "write",
    [
        iterate,
        iterate_with_a_timeout,
        iterate_in_a_task,
        iterate_and_swallow,
        iterate_and_replace_the_exception,
        write_from,
    ],
)
async def test_a_cancel_reaches_a_handler_that_waits_for_its_model(write: Writes, by: str) -> None:
    source = SlowSource()
    raised: list[BaseException] = []
    async with attached() as (worker, _, side):

        @worker.handler
        async def answer(message: Message) -> None:
            try:
                async with worker.reply(message) as out:
                    await write(out, source)
            except ReplyCancelled as error:
                raised.append(error)
                task = asyncio.current_task()
                assert task is not None
                assert not task.cancelling()
                raise

        await side.deliver(1)
        opening = await side.open_reply()
        await side.read_text("so far")
        ended = ReplyEnded(reply=opening.reply, state=MESSAGE_STATE_CANCELLED)
        if by in ("delivery", "both", "twice"):
            await side.write(CANCEL)
        if by == "twice":
            await side.write(CANCEL)
        if by in ("reply", "both"):
            await side.write(AttachResponse(ended=[ended]))
        if by in ("delivery", "twice"):
            assert (await side.end_reply()).state == MESSAGE_STATE_CANCELLED
        assert (await read_settlement(side)).WhichOneof("outcome") is None
        assert all(end.reply == opening.reply for end in side._unread["ends"]), "only open replies are ended"
        assert isinstance(source.raised, asyncio.CancelledError)
        assert source.closed.is_set()
        assert len(raised) == 1


async def test_a_block_is_interrupted_if_its_on_cancel_raises(caplog: pytest.LogCaptureFixture) -> None:
    source = SlowSource()

    def fail() -> None:
        raise LookupError("no such button")

    async with attached() as (worker, _, side):

        @worker.handler
        async def answer(message: Message) -> None:
            async with worker.reply(message, on_cancel=fail) as out:
                await iterate(out, source)

        await side.deliver(1)
        await side.open_reply()
        await side.read_text("so far")
        await side.write(CANCEL)
        assert (await side.end_reply()).state == MESSAGE_STATE_CANCELLED
        await read_settlement(side)
        assert source.closed.is_set()
        assert "no such button" in caplog.text


async def test_a_task_group_around_a_reply_passes_a_cancel_on(caplog: pytest.LogCaptureFixture) -> None:
    source = SlowSource()
    async with attached() as (worker, _, side):

        @worker.handler
        async def answer(message: Message) -> None:
            async def write() -> None:
                async with worker.reply(message) as out:
                    await iterate(out, source)

            async with asyncio.TaskGroup() as group:
                group.create_task(write())

        await side.deliver(1)
        opening = await side.open_reply()
        await side.read_text("so far")
        await side.send_ended(opening.reply, MESSAGE_STATE_CANCELLED)
        assert (await read_settlement(side)).WhichOneof("outcome") is None
        assert not [each for each in caplog.records if each.levelno >= logging.WARNING]


async def test_a_task_group_passes_retry_later_on() -> None:
    async with attached() as (worker, _, side):

        @worker.handler
        async def answer(message: Message) -> None:
            async def fail() -> None:
                raise RetryLater(7, "busy")

            async with worker.reply(message), asyncio.TaskGroup() as group:
                group.create_task(fail())

        await side.deliver(1)
        await side.open_reply()
        batch = await side.read()
        assert not batch.ends, "the reply stays open for the next attempt"
        assert (batch.settlements[0].retry.after_ms, batch.settlements[0].retry.reason) == (7000, "busy")


# Before the reply, and after it.


async def test_a_cancel_interrupts_a_handler_before_its_reply(caplog: pytest.LogCaptureFixture) -> None:
    waiting = asyncio.Event()
    async with attached() as (worker, _, side):

        @worker.handler
        async def answer(message: Message) -> str:
            waiting.set()
            await asyncio.Event().wait()
            return "never"

        await side.deliver(1)
        await waiting.wait()
        await side.write(CANCEL)
        settled = await read_settlement(side)
        assert (settled.delivery_id, settled.WhichOneof("outcome"), list(settled.replies)) == (1, None, [])
        assert not [each for each in caplog.records if each.levelno >= logging.WARNING]


@pytest.mark.parametrize("replaced", [False, True])
async def test_a_handler_that_swallows_a_cancel_cannot_open_a_reply(replaced: bool) -> None:
    waiting = asyncio.Event()
    raised: list[BaseException] = []
    async with attached() as (worker, _, side):

        @worker.handler
        async def answer(message: Message) -> None:
            waiting.set()
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                if replaced:
                    raise RuntimeError("the model failed") from None
            try:
                worker.reply(message)
            except ReplyCancelled as error:
                raised.append(error)
                raise

        await side.deliver(1)
        await waiting.wait()
        await side.write(CANCEL)
        assert (await read_settlement(side)).WhichOneof("outcome") is None, "it is not redelivered"
        assert len(raised) == (not replaced)


async def test_a_handler_that_shields_its_work_settles_it() -> None:
    waiting, gate = asyncio.Event(), asyncio.Event()
    async with attached() as (worker, _, side):

        @worker.handler
        async def answer(message: Message) -> str:
            waiting.set()
            work = asyncio.ensure_future(gate.wait())
            try:
                await asyncio.shield(work)
            except asyncio.CancelledError:
                await work
            return "left alone"

        await side.deliver(1)
        await waiting.wait()
        await side.write(CANCEL)
        gate.set()
        assert (await read_settlement(side)).replies[0].parts[0].text.text == "left alone"


async def test_a_cancel_between_the_opening_and_the_block_interrupts_it() -> None:
    async with attached() as (worker, _, side):

        @worker.handler
        async def answer(message: Message) -> None:
            async with worker.reply(message):
                pytest.fail("it is not run")

        await side.deliver(1)
        (opening,) = await side.read_until("opens")
        opened = ReplyOpened(reply=opening.reply, message=Message(id="r1", state=MESSAGE_STATE_OPEN))
        await side.write(AttachResponse(opened=[opened], cancelled=[1]))
        assert (await side.end_reply()).state == MESSAGE_STATE_CANCELLED
        assert (await read_settlement(side)).WhichOneof("outcome") is None


async def test_a_cancel_while_the_reply_is_being_opened_ends_the_handler() -> None:
    async with attached() as (worker, _, side):

        @worker.handler
        async def answer(message: Message) -> None:
            async with worker.reply(message):
                pytest.fail("it is not run")

        await side.deliver(1)
        await side.read_until("opens")
        await side.write(CANCEL)
        assert (await read_settlement(side)).WhichOneof("outcome") is None


async def test_a_cancel_after_the_reply_leaves_the_handler_alone() -> None:
    gate = asyncio.Event()
    seen: list[str] = []
    async with attached() as (worker, _, side):

        @worker.handler
        async def answer(message: Message) -> None:
            async with worker.reply(message):
                pass
            seen.append("ended")
            await gate.wait()
            with pytest.raises(ReplyCancelled):
                worker.reply(message)
            seen.append("finished")

        await side.deliver(1)
        await side.open_reply()
        await side.end_reply()
        await eventually(lambda: seen == ["ended"])
        await side.write(CANCEL)
        await eventually(lambda: worker._table._deliveries[1].cancelled)
        gate.set()
        assert (await read_settlement(side)).WhichOneof("outcome") is None
        assert seen == ["ended", "finished"]


async def test_a_cancel_of_one_reply_passes_through_the_block_of_another() -> None:
    async with attached() as (worker, _, side):

        @worker.handler
        async def answer(message: Message) -> None:
            async with worker.reply(message), worker.reply(message):
                await asyncio.Event().wait()

        await side.deliver(1)
        await side.open_reply()
        inner = await side.open_reply()
        await eventually(lambda: worker._table._deliveries[1].replies[1].block.is_active)
        await side.send_ended(inner.reply, MESSAGE_STATE_CANCELLED)
        assert (await side.end_reply()).state == MESSAGE_STATE_CANCELLED
        assert (await read_settlement(side)).WhichOneof("outcome") is None


async def test_a_handler_that_ignores_a_cancel_keeps_its_lease_no_longer() -> None:
    time_ = FakeTime()
    swallowed, gate = asyncio.Event(), asyncio.Event()
    async with attached(time_) as (worker, _, side):

        @worker.handler
        async def answer(message: Message) -> None:
            try:
                await gate.wait()
            except asyncio.CancelledError:
                swallowed.set()
                await gate.wait()

        await side.deliver(1, 2)
        await side.write(CANCEL)
        await swallowed.wait()
        await time_.wait_for_sleep(10)
        time_.advance(10)
        assert list((await side.read()).extend) == [2]
        gate.set()
        settled = await side.read_until("settlements")
        assert {each.delivery_id for each in settled} == {1, 2}


# Other ends of a message, and of a delivery.


@pytest.mark.parametrize("handled_by", ["interruption", "on_cancel"])
@pytest.mark.parametrize("reason", ["expired", "fenced"])
async def test_any_other_end_reaches_a_handler_that_waits_for_its_model(reason: str, handled_by: str) -> None:
    source = SlowSource()
    cancelled = asyncio.Event()
    raised: asyncio.Future[type[BaseException]] = asyncio.get_running_loop().create_future()
    async with attached() as (worker, _, side):

        @worker.handler
        async def answer(message: Message) -> None:
            try:
                on_cancel = cancelled.set if handled_by == "on_cancel" else None
                async with worker.reply(message, on_cancel=on_cancel) as out:
                    await iterate(out, source)
            except Exception as error:
                raised.set_result(type(error))
                raise

        await side.deliver(1)
        opening = await side.open_reply()
        await side.read_text("so far")
        if handled_by == "on_cancel":
            # A cancel that the handler does not follow leaves it open to what ends it for good.
            await side.write(CANCEL)
            await cancelled.wait()
        if reason == "expired":
            await side.send_ended(opening.reply, MESSAGE_STATE_EXPIRED)
        else:
            error = Error(code="PRODUCER_FENCED", message="taken over")
            await side.write(AttachResponse(progress=[ReplyProgress(reply=opening.reply, error=error)]))
        assert await raised is (ReplyExpired if reason == "expired" else Fenced)
        assert source.closed.is_set()


async def test_a_stopped_worker_closes_the_model_and_leaves_the_reply_open() -> None:
    source = SlowSource()
    async with attached() as (worker, _, side):

        @worker.handler
        async def answer(message: Message) -> None:
            async with worker.reply(message) as out:
                await iterate(out, source)

        await side.deliver(1)
        await side.open_reply()
        await side.read_text("so far")
    assert source.closed.is_set()
    assert not side._unread["ends"], "the next worker continues the reply"
    assert not side._unread["settlements"]


async def test_a_lost_lease_closes_the_model_before_and_inside_a_reply() -> None:
    time_ = FakeTime()
    sources = {"m1": SlowSource(), "m2": SlowSource()}
    async with attached(time_) as (worker, router, side):

        @worker.handler
        async def answer(message: Message) -> None:
            if message.id == "m1":
                async for _ in sources["m1"]():
                    pass
            async with worker.reply(message) as out:
                await iterate(out, sources["m2"])

        await side.deliver(1, 2)
        await side.open_reply()
        await side.read_text("so far")
        side.end()
        again = await router.stream()
        await again.welcome(lease_s=12)
        await time_.wait_for_sleep(12)
        time_.advance(12)
        for source in sources.values():
            await source.closed.wait()


# Sources that block the event loop.


async def test_writes_from_a_blocking_source_are_sent_and_can_be_cancelled() -> None:
    stop = threading.Event()
    async with attached() as (worker, _, side):

        @worker.handler
        async def answer(message: Message) -> None:
            async with worker.reply(message) as out:
                while not stop.is_set():
                    time.sleep(0.02)  # noqa: ASYNC251  the fault that is tested
                    await out.write("x")

        await side.deliver(1)
        try:
            await side.open_reply()
            await side.read_until("deltas")
            await side.write(CANCEL)
            assert (await side.end_reply()).state == MESSAGE_STATE_CANCELLED
        finally:
            stop.set()


async def test_texts_that_are_written_together_stay_together(monkeypatch: pytest.MonkeyPatch) -> None:
    # The machine may stop this process for longer than the bound.
    monkeypatch.setattr("trunkline_client.message_writer.MAX_UNWRITTEN_S", 3600)
    async with attached() as (worker, _, side):

        @worker.handler
        async def answer(message: Message) -> None:
            async with worker.reply(message) as out:
                for _ in range(50):
                    await out.write("word ")

        await side.deliver(1)
        await side.open_reply()
        await side.end_reply()
        (deltas,) = side._unread["deltas"]
        assert [each.text for each in deltas.deltas] == ["word " * 50]


class Blocking:
    """A plain generator on threads; each step waits for permission."""

    def __init__(self) -> None:
        self.permits = threading.Semaphore(1)
        self.threads: set[int] = set()
        self.closed = threading.Event()

    def __call__(self) -> Iterator[str | Part]:
        try:
            for number in range(3):
                self.permits.acquire()
                self.threads.add(threading.get_ident())
                yield f"{number} "
        finally:
            self.closed.set()


async def test_a_plain_iterable_runs_in_threads() -> None:
    source = Blocking()
    source.permits.release(9)
    async with attached() as (worker, _, side):

        @worker.handler
        async def answer(message: Message) -> None:
            async with worker.reply(message) as out:
                await out.write_from(source())

        await side.deliver(1)
        await side.open_reply()
        await side.read_text("0 1 2 ")
        assert (await side.end_reply()).state == MESSAGE_STATE_COMPLETE
        assert threading.get_ident() not in source.threads
        assert source.closed.is_set()


async def test_a_cancel_does_not_wait_for_the_step_of_a_plain_iterable() -> None:
    source = Blocking()
    async with attached() as (worker, _, side):

        @worker.handler
        async def answer(message: Message) -> None:
            async with worker.reply(message) as out:
                await out.write_from(source())

        await side.deliver(1)
        try:
            await side.open_reply()
            await side.read_text("0 ")
            await side.write(CANCEL)
            await side.end_reply()
            await read_settlement(side)
            assert not source.closed.is_set(), "its step is running"
        finally:
            source.permits.release(9)
        await eventually(source.closed.is_set)


async def test_a_source_may_yield_parts_and_reasoning() -> None:
    async def source() -> AsyncIterator[str | Part]:
        yield Part(reasoning=ReasoningPart(text="hm"))
        yield "so"

    async with attached() as (worker, _, side):

        @worker.handler
        async def answer(message: Message) -> None:
            async with worker.reply(message) as out:
                await out.write_from(source())

        await side.deliver(1)
        await side.open_reply()
        await side.end_reply()
        (deltas,) = side._unread["deltas"]
        assert [(each.reasoning, each.text) for each in deltas.deltas] == [("hm", ""), ("", "so")]


@pytest.mark.parametrize("source", ["a string", [7]])
async def test_a_source_of_anything_else_is_a_type_error(source: Any) -> None:
    raised: list[BaseException] = []
    async with attached() as (worker, _, side):

        @worker.handler
        async def answer(message: Message) -> None:
            try:
                async with worker.reply(message) as out:
                    await out.write_from(source)
            except TypeError as error:
                raised.append(error)
                raise

        await side.deliver(1)
        await side.open_reply()
        assert (await side.end_reply()).state == MESSAGE_STATE_FAILED
        await read_settlement(side)
        assert "write_from" in str(raised[0]) or "yields str and Part" in str(raised[0])
