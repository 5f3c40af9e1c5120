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

from tests.clients.scripted_edge import ALICE, FakeTime, soon
from tests.clients.scripted_worker import attached, settlement


async def test_after_a_break_a_reply_goes_on_where_the_log_ends() -> None:
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
        await side.opened()
        await side.heard("one ")
        side.end()
        again = await router.stream()
        await again.welcome()
        gate.set()
        await again.deliver(1, attempt=2)
        opening = await again.opened(next_index=0)
        assert opening.key == "m1"
        assert [each.index for each in await again.heard("one two three")] == [0]
        assert (await again.ended()).next_index == 1
        assert (await settlement(again)).delivery_id == 1


async def test_an_end_that_was_lost_with_the_stream_is_found_when_it_is_opened_again() -> None:
    async with attached() as (worker, router, side):

        @worker.handler
        async def answer(message: Message) -> None:
            async with worker.reply(message) as out:
                await out.write("all")

        await side.deliver(1)
        await side.opened()
        await side.until("ends")
        side.end()
        again = await router.stream()
        await again.welcome()
        await again.deliver(1, attempt=2)
        await again.opened("all", next_index=1, state=MESSAGE_STATE_COMPLETE)
        assert (await settlement(again)).WhichOneof("outcome") is None


async def test_a_reply_that_is_not_given_back_is_fenced() -> None:
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
        await side.opened()
        await soon(lambda: worker._table._deliveries[1].replies[0].block.is_active)
        side.end()
        again = await router.stream()
        await again.welcome(lease_s=12)
        await time.asleep_for(12)
        time.advance(12)
        await over.wait()
        assert seen == ["inside", "outside"]
        await again.deliver(2)
        assert (await again.until("opens"))[0].key == "m2", "nothing was settled before"


@pytest.mark.parametrize("code", ["PRODUCER_FENCED", "DELIVERY_NOT_HELD"])
async def test_a_reply_that_somebody_else_took_up_is_fenced(code: str) -> None:
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
        opening = await side.opened()
        await side.until("deltas")
        progress = ReplyProgress(reply=opening.reply, error=Error(code=code, message="taken up"))
        await side.write(AttachResponse(progress=[progress]))
        assert await raised is Fenced
        await side.deliver(2)
        await side.until("opens")


@pytest.mark.parametrize("state", [MESSAGE_STATE_COMPLETE, MESSAGE_STATE_FAILED, MESSAGE_STATE_CANCELLED])
async def test_what_was_answered_before_is_settled_without_a_reply(state: Any) -> None:
    async with attached() as (worker, _, side):

        @worker.handler
        async def answer(message: Message) -> None:
            async with worker.reply(message):
                pytest.fail("it is not run")

        await side.deliver(1, attempt=2)
        await side.opened("said", next_index=1, state=state)
        assert (await settlement(side)).WhichOneof("outcome") is None


async def test_a_reply_that_expired_is_begun_anew() -> None:
    async with attached() as (worker, _, side):

        @worker.handler
        async def answer(message: Message) -> None:
            async with worker.reply(message):
                pass

        await side.deliver(1, attempt=2)
        await side.opened("half", next_index=1, state=MESSAGE_STATE_EXPIRED)
        assert (await side.opened("half", next_index=1, state=MESSAGE_STATE_EXPIRED)).key == "m1~2"
        assert (await side.opened()).key == "m1~3"
        assert (await side.ended()).next_index == 0


async def test_a_successor_goes_on_with_what_was_said() -> None:
    async with attached() as (worker, _, side):

        @worker.handler
        async def answer(message: Message) -> None:
            async with worker.reply(message) as out:
                assert out.resumed is not None
                assert (out.text, out.next_index) == ("one ", 3)
                await out.write("two")
                assert out.text == "one two"

        await side.deliver(1, attempt=2)
        await side.opened("one ", next_index=3)
        assert [each.index for each in await side.heard("two")] == [3]
        assert (await side.ended()).next_index == 4


async def test_a_reply_that_the_router_gave_up_is_begun_anew_by_the_next_attempt() -> None:
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
        opening = await side.opened()
        await side.say_ended(opening.reply, MESSAGE_STATE_EXPIRED)
        assert (await settlement(side)).HasField("retry")
        assert raised == [ReplyExpired]


async def test_a_gap_is_filled_from_where_the_router_says() -> None:
    gate = asyncio.Event()
    async with attached() as (worker, _, side):

        @worker.handler
        async def answer(message: Message) -> None:
            async with worker.reply(message) as out:
                await out.write("one ")
                await gate.wait()
                await out.write("two")

        await side.deliver(1)
        opening = await side.opened()
        await side.heard("one ")
        gap = ReplyProgress(
            reply=opening.reply, next_index=0, error=Error(code="DELTA_GAP", message="", retryable=True)
        )
        await side.write(AttachResponse(progress=[gap]))
        await side.heard("one ")
        gate.set()
        await side.heard("two")
        await side.ended()


async def test_something_is_said_that_answers_nothing_and_outlives_the_stream() -> None:
    gate = asyncio.Event()
    async with attached() as (worker, router, side):

        async def say() -> None:
            async with worker.open_message(ALICE, key="news", name="Echo") as out:
                await out.write("one ")
                await gate.wait()
                await out.write("two")

        saying = asyncio.create_task(say())
        opening = await side.opened()
        assert (opening.key, opening.address, opening.name) == ("news", ALICE, "Echo")
        await side.heard("one ")
        side.end()
        again = await router.stream()
        await again.welcome()
        assert (await again.opened("one ", next_index=1)).key == "news"
        gate.set()
        await again.heard("two")
        await again.ended()
        await saying


async def test_a_reply_to_what_this_worker_does_not_hold_is_fenced() -> None:
    async with attached() as (worker, _, _):
        with pytest.raises(Fenced, match="does not hold the delivery of message m9"):
            worker.reply(Message(id="m9"))


async def test_what_comes_back_after_it_was_given_up_is_handled_anew() -> None:
    time = FakeTime()
    gate = asyncio.Event()
    calls = 0
    async with attached(time) as (worker, router, side):

        @worker.handler
        async def answer(message: Message) -> str:
            nonlocal calls
            calls += 1
            if calls > 1:
                return "anew"
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                await gate.wait()
            return "too late"

        await side.deliver(1)
        await soon(lambda: calls)
        side.end()
        again = await router.stream()
        await again.welcome(lease_s=12)
        await time.asleep_for(12)
        time.advance(12)
        await again.deliver(1, attempt=2)
        await soon(lambda: calls == 2)
        gate.set()
        settled = await settlement(again)
        assert settled.replies[0].parts[0].text.text == "anew"
