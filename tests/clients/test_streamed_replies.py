"""A worker that answers piece by piece, against a router that says what the test wants."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from trunkline.v1.agent_service_pb2 import AttachResponse, ReplyEnded, ReplyOpened, ReplyProgress
from trunkline.v1.error_pb2 import Error
from trunkline.v1.message_pb2 import (
    MESSAGE_STATE_CANCELLED,
    MESSAGE_STATE_COMPLETE,
    MESSAGE_STATE_FAILED,
    Part,
    ToolCallPart,
)
from trunkline_client import (
    Message,
    Refused,
    Reject,
    ReplyCancelled,
    RetryLater,
)
from trunkline_client.delta_buffer import MAX_KEPT_BYTES
from trunkline_client.reader_errors import error_for_readers

from tests.clients.scripted_edge import FakeTime, soon
from tests.clients.scripted_worker import attached, settlement


async def test_a_reply_is_opened_extended_and_ended_before_its_delivery_is_settled() -> None:
    async with attached() as (worker, _, side):

        @worker.handler
        async def answer(message: Message) -> None:
            async with worker.reply(message, name="Echo", attributes={"k": "v"}) as out:
                assert (out.id, out.next_index, out.resumed) == ("r1", 0, None)
                await out.write("Hello, ")
                await out.write("world")
                await out.write_reasoning("hm")
                await out.add(Part(tool_call=ToolCallPart(call_id="c", name="look", arguments="{}")))
                assert out.text == "Hello, world"

        await side.deliver(1)
        opening = await side.opened()
        assert (opening.key, opening.delivery_id, opening.name) == ("m1", 1, "Echo")
        assert dict(opening.attributes) == {"k": "v"}
        batch = await side.read()
        (deltas,) = batch.deltas
        assert [(each.index, each.WhichOneof("content")) for each in deltas.deltas] == [
            (0, "text"),
            (1, "reasoning"),
            (2, "part"),
        ], "what is written together goes as one delta"
        assert deltas.deltas[0].text == "Hello, world"
        (end,) = batch.ends
        assert (end.reply, end.state, end.next_index) == (opening.reply, MESSAGE_STATE_COMPLETE, 3)
        assert not batch.settlements
        await side.say_ended(end.reply, end.state)
        settled = await settlement(side)
        assert (settled.delivery_id, list(settled.replies), settled.WhichOneof("outcome")) == (1, [], None)


async def test_a_second_reply_to_a_message_has_a_key_of_its_own() -> None:
    async with attached() as (worker, _, side):

        @worker.handler
        async def answer(message: Message) -> None:
            for _ in range(2):
                async with worker.reply(message):
                    pass

        await side.deliver(1)
        keys = []
        for _ in range(2):
            keys.append((await side.opened()).key)
            await side.ended()
        assert keys == ["m1", "m1/2"]


async def test_an_exception_ends_the_reply_failed_and_the_delivery_is_done() -> None:
    async with attached() as (worker, _, side):

        @worker.handler
        async def answer(message: Message) -> None:
            async with worker.reply(message) as out:
                await out.write("so far")
                raise LookupError("no such model")

        await side.deliver(1)
        await side.opened()
        end = await side.ended()
        assert (end.state, end.error.code, end.error.message, end.next_index) == (
            MESSAGE_STATE_FAILED,
            "LOOKUP_ERROR",
            "no such model",
            1,
        )
        assert (await settlement(side)).WhichOneof("outcome") is None


async def test_a_handler_that_asks_for_another_attempt_leaves_its_reply_open() -> None:
    async with attached() as (worker, _, side):

        @worker.handler
        async def answer(message: Message) -> None:
            async with worker.reply(message) as out:
                await out.write("so far")
                raise RetryLater(1.0, "busy")

        await side.deliver(1)
        await side.opened()
        batch = await side.read()
        assert [each.text for each in batch.deltas[0].deltas] == ["so far"]
        assert not batch.ends
        settled = batch.settlements[0] if batch.settlements else await settlement(side)
        assert settled.retry.reason == "busy"


async def test_a_rejected_message_has_a_failed_reply() -> None:
    async with attached() as (worker, _, side):

        @worker.handler
        async def answer(message: Message) -> None:
            async with worker.reply(message):
                raise Reject("spam")

        await side.deliver(1)
        await side.opened()
        assert (await side.ended()).error.code == "REJECT"
        assert (await settlement(side)).reject.reason == "spam"


async def test_a_cancelled_delivery_interrupts_a_handler_that_waits_for_its_model() -> None:
    seen: list[str] = []
    async with attached() as (worker, _, side):

        @worker.handler
        async def answer(message: Message) -> None:
            try:
                async with worker.reply(message):
                    await asyncio.Event().wait()
            except ReplyCancelled:
                task = asyncio.current_task()
                assert task is not None
                assert not task.cancelling(), "the task may go on"
                await asyncio.sleep(0)
                seen.append("cancelled")
                raise

        await side.deliver(1)
        await side.opened()
        await soon(lambda: worker._table._deliveries[1].replies[0].block.is_active)
        await side.write(AttachResponse(cancelled=[1]))
        assert (await side.ended()).state == MESSAGE_STATE_CANCELLED
        assert (await settlement(side)).WhichOneof("outcome") is None
        assert seen == ["cancelled"]


async def test_an_end_by_the_readers_interrupts_and_on_cancel_takes_the_place_of_that() -> None:
    told = asyncio.Event()
    seen: list[str] = []
    async with attached() as (worker, _, side):

        @worker.handler
        async def answer(message: Message) -> None:
            async with worker.reply(message, on_cancel=told.set) as out:
                await told.wait()
                with pytest.raises(ReplyCancelled):
                    await out.write("more")
                seen.append("went on")

        await side.deliver(1)
        opening = await side.opened()
        await soon(lambda: worker._table._deliveries[1].replies[0].block.is_active)
        await side.say_ended(opening.reply, MESSAGE_STATE_CANCELLED)
        assert (await settlement(side)).WhichOneof("outcome") is None
        assert seen == ["went on"]


async def test_nobody_wants_a_reply_any_longer_before_it_was_opened() -> None:
    gate = asyncio.Event()
    async with attached() as (worker, _, side):

        @worker.handler
        async def answer(message: Message) -> str:
            await gate.wait()
            if message.id == "m1":
                async with worker.reply(message):
                    pytest.fail("it is not opened")
            return "left alone"

        await side.deliver(1, 2)
        await side.write(AttachResponse(cancelled=[1, 2, 3]))
        await soon(lambda: worker._table._deliveries and worker._table._deliveries[2].cancelled)
        gate.set()
        settled = await side.until("settlements")
        while len(settled) < 2:
            settled += await side.until("settlements")
        assert {each.delivery_id: len(each.replies) for each in settled} == {1: 0, 2: 1}


async def test_a_reply_that_grew_too_large_says_so_and_fails() -> None:
    async with attached() as (worker, _, side):

        @worker.handler
        async def answer(message: Message) -> None:
            async with worker.reply(message) as out:
                await out.write("x")
                await asyncio.Event().wait()

        await side.deliver(1)
        opening = await side.opened()
        await side.until("deltas")
        error = Error(code="MESSAGE_TOO_LARGE", message="it would grow beyond 1 MiB")
        await side.write(AttachResponse(progress=[ReplyProgress(reply=opening.reply, error=error)]))
        assert (await side.ended()).error.code == "MESSAGE_TOO_LARGE"
        assert (await settlement(side)).WhichOneof("outcome") is None


async def test_an_opening_that_is_refused_fails_the_handler() -> None:
    async with attached() as (worker, _, side):

        @worker.handler
        async def answer(message: Message) -> None:
            async with worker.reply(message):
                pytest.fail("it is not run")

        await side.deliver(1)
        (opening,) = await side.until("opens")
        error = Error(code="TOO_MANY_OPEN_MESSAGES", message="no", retryable=True)
        await side.write(AttachResponse(opened=[ReplyOpened(reply=opening.reply, error=error)]))
        assert "TOO_MANY_OPEN_MESSAGES" in (await settlement(side)).retry.reason


async def test_an_end_that_cannot_be_taken_now_is_sent_again() -> None:
    time = FakeTime()
    async with attached(time) as (worker, _, side):

        @worker.handler
        async def answer(message: Message) -> None:
            async with worker.reply(message):
                pass

        await side.deliver(1)
        await side.opened()
        (end,) = await side.until("ends")
        error = Error(code="LOG_UNAVAILABLE", message="not now", retryable=True)
        await side.write(AttachResponse(ended=[ReplyEnded(reply=end.reply, error=error)]))
        await side.deliver(2)
        await side.until("opens")
        await time.asleep_for(10)
        time.advance(10)
        await side.ended()
        await settlement(side)


async def test_writing_waits_while_too_much_is_not_on_disk() -> None:
    written = 0
    async with attached() as (worker, _, side):

        @worker.handler
        async def answer(message: Message) -> None:
            nonlocal written
            async with worker.reply(message) as out:
                for _ in range(100):
                    await out.write("x" * (32 << 10))
                    written += 1

        await side.deliver(1)
        opening = await side.opened()
        size = 0
        last = 0
        while size < MAX_KEPT_BYTES:
            for each in await side.until("deltas"):
                size += each.ByteSize()
                last = each.deltas[-1].index
        assert written < 40
        progress = ReplyProgress(reply=opening.reply, next_index=last + 1, durable_index=last + 1)
        await side.write(AttachResponse(progress=[progress]))
        await side.until("deltas")


async def test_a_timeout_around_a_reply_ends_it_failed() -> None:
    async with attached() as (worker, _, side):

        @worker.handler
        async def answer(message: Message) -> None:
            async with worker.reply(message):
                task = asyncio.current_task()
                assert task is not None
                task.cancel()
                await asyncio.Event().wait()

        await side.deliver(1)
        await side.opened()
        end = await side.ended()
        assert (end.state, end.error.code) == (MESSAGE_STATE_FAILED, "INTERRUPTED")


async def test_a_reply_that_was_left_while_it_was_opened_does_not_stay_open() -> None:
    tasks: list[asyncio.Task[Any]] = []
    async with attached() as (worker, _, side):

        @worker.handler
        async def answer(message: Message) -> str:
            task = asyncio.current_task()
            assert task is not None
            tasks.append(task)
            try:
                async with worker.reply(message):
                    pytest.fail("it is not run")
            except asyncio.CancelledError:
                task.uncancel()
            return "too slow"

        await side.deliver(1)
        (opening,) = await side.until("opens")
        tasks[0].cancel()
        await soon(lambda: worker._table._deliveries[1].settlement)
        await side.say_opened(opening.reply)
        end = await side.ended()
        assert (end.state, end.error.code) == (MESSAGE_STATE_FAILED, "INTERRUPTED")
        assert (await settlement(side)).replies[0].parts[0].text.text == "too slow"


def test_what_readers_are_told_of_an_exception() -> None:
    class HTTPStatusError(Exception):
        pass

    assert error_for_readers(HTTPStatusError("503")) == Error(code="HTTP_STATUS_ERROR", message="503")
    assert error_for_readers(KeyError()) == Error(code="KEY_ERROR", message="KeyError")
    assert error_for_readers(Refused("OVERLOADED", "too much")) == Error(
        code="OVERLOADED", message="too much"
    )
