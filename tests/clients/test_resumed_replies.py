"""Streamed replies that outlive a stream, a worker or a router."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from trunkline.v1.agent_service_pb2 import AttachResponse, ReplyProgress
from trunkline.v1.error_pb2 import Error
from trunkline.v1.message_pb2 import (
    MESSAGE_STATE_CANCELLED,
    MESSAGE_STATE_COMPLETE,
    MESSAGE_STATE_EXPIRED,
    MESSAGE_STATE_FAILED,
)
from trunkline_client import (
    Fenced,
    Message,
    ReplyExpired,
)

from tests.clients.scripted_edge import ALICE, FakeTime, eventually
from tests.clients.scripted_worker import attached, read_settlement


async def test_after_a_break_a_reply_continues_where_the_log_ends() -> None:
    gate = asyncio.Event()
    async with attached() as (worker, router, side):

        @worker.handler
        async def answer(message: Message) -> None:
            async with worker.reply(message) as out:
                await out.write("one ")
                await gate.wait()
                await out.write("two ")
                await out.write("three")

        await side.deliver(1)
        await side.open_reply()
        await side.read_text("one ")
        side.end()
        again = await router.stream()
        await again.welcome()
        gate.set()
        await again.deliver(1, attempt=2)
        opening = await again.open_reply(next_index=0)
        assert opening.key == "m1"
        assert [each.index for each in await again.read_text("one two three")] == [0]
        assert (await again.end_reply()).next_index == 1
        assert (await read_settlement(again)).delivery_id == 1


async def test_an_end_lost_with_the_stream_is_found_on_reopening() -> None:
    async with attached() as (worker, router, side):

        @worker.handler
        async def answer(message: Message) -> None:
            async with worker.reply(message) as out:
                await out.write("all")

        await side.deliver(1)
        await side.open_reply()
        await side.read_until("ends")
        side.end()
        again = await router.stream()
        await again.welcome()
        await again.deliver(1, attempt=2)
        await again.open_reply("all", next_index=1, state=MESSAGE_STATE_COMPLETE)
        assert (await read_settlement(again)).WhichOneof("outcome") is None


async def test_a_reply_that_is_not_redelivered_is_fenced() -> None:
    time = FakeTime()
    seen: list[str] = []
    over = asyncio.Event()
    async with attached(time) as (worker, router, side):

        @worker.handler
        async def answer(message: Message) -> None:
            try:
                async with worker.reply(message):
                    try:
                        await asyncio.Event().wait()
                    except asyncio.CancelledError:
                        seen.append("inside")
                        raise
            except Fenced:
                seen.append("outside")
                over.set()
                raise

        await side.deliver(1)
        await side.open_reply()
        await eventually(lambda: worker._table._deliveries[1].replies[0].block.is_active)
        side.end()
        again = await router.stream()
        await again.welcome(lease_s=12)
        await time.wait_for_sleep(12)
        time.advance(12)
        await over.wait()
        assert seen == ["inside", "outside"]
        await again.deliver(2)
        assert (await again.read_until("opens"))[0].key == "m2", "nothing was settled earlier"


@pytest.mark.parametrize("code", ["PRODUCER_FENCED", "DELIVERY_NOT_HELD"])
async def test_a_reply_that_another_worker_took_over_is_fenced(code: str) -> None:
    raised: asyncio.Future[type[Exception]] = asyncio.get_running_loop().create_future()
    async with attached() as (worker, _, side):

        @worker.handler
        async def answer(message: Message) -> None:
            try:
                async with worker.reply(message) as out:
                    while True:
                        await out.write("x")
                        await asyncio.sleep(0)
            except Exception as error:
                raised.set_result(type(error))
                raise

        await side.deliver(1)
        opening = await side.open_reply()
        await side.read_until("deltas")
        progress = ReplyProgress(reply=opening.reply, error=Error(code=code, message="taken up"))
        await side.write(AttachResponse(progress=[progress]))
        assert await raised is Fenced
        await side.deliver(2)
        await side.read_until("opens")


@pytest.mark.parametrize("state", [MESSAGE_STATE_COMPLETE, MESSAGE_STATE_FAILED, MESSAGE_STATE_CANCELLED])
async def test_a_message_that_was_answered_before_is_acked_without_a_reply(state: Any) -> None:
    async with attached() as (worker, _, side):

        @worker.handler
        async def answer(message: Message) -> None:
            async with worker.reply(message):
                pytest.fail("it is not run")

        await side.deliver(1, attempt=2)
        await side.open_reply("said", next_index=1, state=state)
        assert (await read_settlement(side)).WhichOneof("outcome") is None


async def test_an_expired_reply_is_started_again() -> None:
    async with attached() as (worker, _, side):

        @worker.handler
        async def answer(message: Message) -> None:
            async with worker.reply(message):
                pass

        await side.deliver(1, attempt=2)
        await side.open_reply("half", next_index=1, state=MESSAGE_STATE_EXPIRED)
        assert (await side.open_reply("half", next_index=1, state=MESSAGE_STATE_EXPIRED)).key == "m1~2"
        assert (await side.open_reply()).key == "m1~3"
        assert (await side.end_reply()).next_index == 0


async def test_a_successor_continues_the_text() -> None:
    async with attached() as (worker, _, side):

        @worker.handler
        async def answer(message: Message) -> None:
            async with worker.reply(message) as out:
                assert out.resumed is not None
                assert (out.text, out.next_index) == ("one ", 3)
                await out.write("two")
                assert out.text == "one two"

        await side.deliver(1, attempt=2)
        await side.open_reply("one ", next_index=3)
        assert [each.index for each in await side.read_text("two")] == [3]
        assert (await side.end_reply()).next_index == 4


async def test_a_reply_that_expires_while_open_is_started_again_by_the_next_attempt() -> None:
    raised: list[type[Exception]] = []
    async with attached() as (worker, _, side):

        @worker.handler
        async def answer(message: Message) -> None:
            try:
                async with worker.reply(message):
                    await asyncio.Event().wait()
            except Exception as error:
                raised.append(type(error))
                raise

        await side.deliver(1)
        opening = await side.open_reply()
        await side.send_ended(opening.reply, MESSAGE_STATE_EXPIRED)
        assert (await read_settlement(side)).HasField("retry")
        assert raised == [ReplyExpired]


async def test_a_delta_gap_is_filled_from_the_reported_index() -> None:
    gate = asyncio.Event()
    async with attached() as (worker, _, side):

        @worker.handler
        async def answer(message: Message) -> None:
            async with worker.reply(message) as out:
                await out.write("one ")
                await gate.wait()
                await out.write("two")

        await side.deliver(1)
        opening = await side.open_reply()
        await side.read_text("one ")
        gap = ReplyProgress(
            reply=opening.reply, next_index=0, error=Error(code="DELTA_GAP", message="", retryable=True)
        )
        await side.write(AttachResponse(progress=[gap]))
        await side.read_text("one ")
        gate.set()
        await side.read_text("two")
        await side.end_reply()


async def test_a_message_without_a_delivery_outlives_the_stream() -> None:
    gate = asyncio.Event()
    async with attached() as (worker, router, side):

        async def write() -> None:
            async with worker.open_message(ALICE, key="news", name="Echo") as out:
                await out.write("one ")
                await gate.wait()
                await out.write("two")

        writing = asyncio.create_task(write())
        opening = await side.open_reply()
        assert (opening.key, opening.address, opening.name) == ("news", ALICE, "Echo")
        await side.read_text("one ")
        side.end()
        again = await router.stream()
        await again.welcome()
        assert (await again.open_reply("one ", next_index=1)).key == "news"
        gate.set()
        await again.read_text("two")
        await again.end_reply()
        await writing


async def test_a_reply_without_a_held_delivery_is_fenced() -> None:
    async with attached() as (worker, _, _):
        with pytest.raises(Fenced, match="does not hold the delivery of message m9"):
            worker.reply(Message(id="m9"))


async def test_a_redelivery_after_the_lease_is_handled_again() -> None:
    time = FakeTime()
    gate = asyncio.Event()
    calls = 0
    async with attached(time) as (worker, router, side):

        @worker.handler
        async def answer(message: Message) -> str:
            nonlocal calls
            calls += 1
            if calls > 1:
                return "again"
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                await gate.wait()
            return "too late"

        await side.deliver(1)
        await eventually(lambda: calls)
        side.end()
        again = await router.stream()
        await again.welcome(lease_s=12)
        await time.wait_for_sleep(12)
        time.advance(12)
        await again.deliver(1, attempt=2)
        await eventually(lambda: calls == 2)
        gate.set()
        settled = await read_settlement(again)
        assert settled.replies[0].parts[0].text.text == "again"
