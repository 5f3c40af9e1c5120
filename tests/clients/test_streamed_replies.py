"""Streamed replies of a worker, against a scripted router."""

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
    Failed,
    Message,
    Refused,
    Reject,
    ReplyCancelled,
    RetryLater,
)
from trunkline_client.delta_buffer import MAX_KEPT_BYTES
from trunkline_client.reader_errors import AGENT_FAILED, error_for_readers, error_for_rejection

from tests.clients.scripted_edge import FakeTime, eventually
from tests.clients.scripted_worker import attached, read_settlement


async def test_a_reply_is_opened_extended_and_ended_before_its_delivery_is_settled(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # The machine may stop this process for longer than the bound.
    monkeypatch.setattr("trunkline_client.message_writer.MAX_UNWRITTEN_S", 3600)
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
        opening = await side.open_reply()
        assert (opening.key, opening.delivery_id, opening.name) == ("m1", 1, "Echo")
        assert dict(opening.attributes) == {"k": "v"}
        batch = await side.read()
        (deltas,) = batch.deltas
        assert [(each.index, each.WhichOneof("content")) for each in deltas.deltas] == [
            (0, "text"),
            (1, "reasoning"),
            (2, "part"),
        ], "text written together goes as one delta"
        assert deltas.deltas[0].text == "Hello, world"
        (end,) = batch.ends
        assert (end.reply, end.state, end.next_index) == (opening.reply, MESSAGE_STATE_COMPLETE, 3)
        assert not batch.settlements
        await side.send_ended(end.reply, end.state)
        settled = await read_settlement(side)
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
            keys.append((await side.open_reply()).key)
            await side.end_reply()
        assert keys == ["m1", "m1/2"]


async def test_an_exception_ends_the_reply_failed_and_acks_the_delivery() -> None:
    async with attached() as (worker, _, side):

        @worker.handler
        async def answer(message: Message) -> None:
            async with worker.reply(message) as out:
                await out.write("so far")
                raise LookupError("no such model")

        await side.deliver(1)
        await side.open_reply()
        end = await side.end_reply()
        assert (end.state, end.error, end.next_index) == (MESSAGE_STATE_FAILED, AGENT_FAILED, 1)
        assert (await read_settlement(side)).WhichOneof("outcome") is None


async def test_retry_later_leaves_the_reply_open() -> None:
    async with attached() as (worker, _, side):

        @worker.handler
        async def answer(message: Message) -> None:
            async with worker.reply(message) as out:
                await out.write("so far")
                raise RetryLater(1.0, "busy")

        await side.deliver(1)
        await side.open_reply()
        batch = await side.read()
        assert [each.text for each in batch.deltas[0].deltas] == ["so far"]
        assert not batch.ends
        settled = batch.settlements[0] if batch.settlements else await read_settlement(side)
        assert settled.retry.reason == "busy"


async def test_reject_ends_the_reply_failed() -> None:
    async with attached() as (worker, _, side):

        @worker.handler
        async def answer(message: Message) -> None:
            async with worker.reply(message):
                raise Reject("spam")

        await side.deliver(1)
        await side.open_reply()
        assert (await side.end_reply()).error == AGENT_FAILED
        assert (await read_settlement(side)).reject.reason == "spam"


async def test_a_cancelled_delivery_interrupts_a_waiting_handler() -> None:
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
                assert not task.cancelling(), "the task is no longer being cancelled"
                await asyncio.sleep(0)
                seen.append("cancelled")
                raise

        await side.deliver(1)
        await side.open_reply()
        await eventually(lambda: worker._table._deliveries[1].replies[0].block.is_active)
        await side.write(AttachResponse(cancelled=[1]))
        assert (await side.end_reply()).state == MESSAGE_STATE_CANCELLED
        assert (await read_settlement(side)).WhichOneof("outcome") is None
        assert seen == ["cancelled"]


async def test_a_cancel_by_readers_interrupts_unless_on_cancel_is_given() -> None:
    cancelled = asyncio.Event()
    seen: list[str] = []
    async with attached() as (worker, _, side):

        @worker.handler
        async def answer(message: Message) -> None:
            async with worker.reply(message, on_cancel=cancelled.set) as out:
                await cancelled.wait()
                with pytest.raises(ReplyCancelled):
                    await out.write("more")
                seen.append("went on")

        await side.deliver(1)
        opening = await side.open_reply()
        await eventually(lambda: worker._table._deliveries[1].replies[0].block.is_active)
        await side.send_ended(opening.reply, MESSAGE_STATE_CANCELLED)
        assert (await read_settlement(side)).WhichOneof("outcome") is None
        assert seen == ["went on"]


async def test_a_reply_that_is_too_large_ends_failed() -> None:
    async with attached() as (worker, _, side):

        @worker.handler
        async def answer(message: Message) -> None:
            async with worker.reply(message) as out:
                await out.write("x")
                await asyncio.Event().wait()

        await side.deliver(1)
        opening = await side.open_reply()
        await side.read_until("deltas")
        error = Error(code="MESSAGE_TOO_LARGE", message="it would grow beyond 1 MiB")
        await side.write(AttachResponse(progress=[ReplyProgress(reply=opening.reply, error=error)]))
        assert (await side.end_reply()).error.code == "MESSAGE_TOO_LARGE"
        assert (await read_settlement(side)).WhichOneof("outcome") is None


async def test_a_rejected_opening_fails_the_handler() -> None:
    async with attached() as (worker, _, side):

        @worker.handler
        async def answer(message: Message) -> None:
            async with worker.reply(message):
                pytest.fail("it is not run")

        await side.deliver(1)
        (opening,) = await side.read_until("opens")
        error = Error(code="TOO_MANY_OPEN_MESSAGES", message="no", retryable=True)
        await side.write(AttachResponse(opened=[ReplyOpened(reply=opening.reply, error=error)]))
        assert "TOO_MANY_OPEN_MESSAGES" in (await read_settlement(side)).retry.reason


async def test_an_end_rejected_for_now_is_resent() -> None:
    time = FakeTime()
    async with attached(time) as (worker, _, side):

        @worker.handler
        async def answer(message: Message) -> None:
            async with worker.reply(message):
                pass

        await side.deliver(1)
        await side.open_reply()
        (end,) = await side.read_until("ends")
        error = Error(code="LOG_UNAVAILABLE", message="not now", retryable=True)
        await side.write(AttachResponse(ended=[ReplyEnded(reply=end.reply, error=error)]))
        await side.deliver(2)
        await side.read_until("opens")
        await time.wait_for_sleep(10)
        time.advance(10)
        await side.end_reply()
        await read_settlement(side)


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
        opening = await side.open_reply()
        size = 0
        last = 0
        while size < MAX_KEPT_BYTES:
            for each in await side.read_until("deltas"):
                size += each.ByteSize()
                last = each.deltas[-1].index
        assert written < 40
        progress = ReplyProgress(reply=opening.reply, next_index=last + 1, durable_index=last + 1)
        await side.write(AttachResponse(progress=[progress]))
        await side.read_until("deltas")


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
        await side.open_reply()
        end = await side.end_reply()
        assert (end.state, end.error.code) == (MESSAGE_STATE_FAILED, "AGENT_FAILED")


async def test_a_reply_left_while_opening_does_not_stay_open() -> None:
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
        (opening,) = await side.read_until("opens")
        tasks[0].cancel()
        await eventually(lambda: worker._table._deliveries[1].settlement)
        await side.send_opened(opening.reply)
        end = await side.end_reply()
        assert (end.state, end.error.code) == (MESSAGE_STATE_FAILED, "AGENT_FAILED")
        assert (await read_settlement(side)).replies[0].parts[0].text.text == "too slow"


@pytest.mark.parametrize(
    "error", [RuntimeError("secret"), KeyError(), Refused("FORBIDDEN", "secret"), Reject("secret")]
)
def test_readers_get_nothing_of_an_exception(error: Exception) -> None:
    assert error_for_readers(error) == AGENT_FAILED
    assert Error(code="AGENT_FAILED", message="The agent failed to answer; ask again later") == AGENT_FAILED


@pytest.mark.parametrize(
    ("code", "readable"), [("MESSAGE_TOO_LARGE", True), ("INVALID_ARGUMENT", False), ("RATE_LIMITED", False)]
)
def test_readers_learn_from_the_router_only_that_a_reply_is_too_large(code: str, readable: bool) -> None:
    expected = Error(code=code, message="text") if readable else AGENT_FAILED
    assert error_for_rejection(Refused(code, "text")) == expected


async def test_failed_ends_the_reply_with_its_text_for_readers() -> None:
    async with attached() as (worker, _, side):

        @worker.handler
        async def answer(message: Message) -> None:
            async with worker.reply(message):
                raise Failed("No credit left" + "\ud83d")

        await side.deliver(1)
        await side.open_reply()
        end = await side.end_reply()
        assert (end.error.code, end.error.message) == ("AGENT_FAILED", "No credit left\ufffd")
        settlement = await read_settlement(side)
        assert (settlement.WhichOneof("outcome"), list(settlement.replies)) == (None, [])
