"""A backend that says a message piece by piece, and changes what was said."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from trunkline.v1 import catalogue
from trunkline.v1.agent_service_pb2 import (
    DeadLetter,
    ListDeadLettersResponse,
    ReplayDeadLettersResponse,
)
from trunkline.v1.broadcast_service_pb2 import (
    CancelMessageResponse,
    EndMessageRequest,
    EndMessageResponse,
    ExtendMessageRequest,
    ExtendMessageResponse,
    OpenMessageRequest,
    OpenMessageResponse,
)
from trunkline.v1.history_service_pb2 import (
    EditMessageResponse,
    ListReceiptsResponse,
    RecallMessageResponse,
    Receipt,
)
from trunkline.v1.message_pb2 import (
    MESSAGE_STATE_CANCELLED,
    MESSAGE_STATE_COMPLETE,
    MESSAGE_STATE_EXPIRED,
    MESSAGE_STATE_FAILED,
    MESSAGE_STATE_OPEN,
    Message,
)
from trunkline_client import AlreadyAnswered, Backend, Fenced, Refused, ReplyCancelled, ReplyExpired

from tests.clients.scripted_edge import ALICE, FakeTime, at, message
from tests.clients.scripted_router import ScriptedRouter, scripted_router


@asynccontextmanager
async def backend(time: FakeTime | None = None) -> AsyncIterator[tuple[ScriptedRouter, Backend]]:
    """A backend, and its router, which takes everything."""
    clock = (time or FakeTime()).clock
    async with scripted_router() as router, Backend(router.address, clock=clock) as ours:
        router.answers |= {
            "OpenMessage": lambda _: OpenMessageResponse(
                message=Message(id="m1", state=MESSAGE_STATE_OPEN), epoch=7
            ),
            "ExtendMessage": lambda request: ExtendMessageResponse(
                next_index=request.deltas[-1].index + 1 if request.deltas else 0
            ),
            "EndMessage": lambda request: EndMessageResponse(state=request.state),
        }
        async with asyncio.timeout(5):
            yield router, ours


def said(router: ScriptedRouter) -> str:
    """All that was said by additions."""
    calls = [each for each in router.asked if isinstance(each, ExtendMessageRequest)]
    assert all((each.tenant, each.message_id, each.epoch) == ("demo", "m1", 7) for each in calls)
    return "".join(delta.text for each in calls for delta in each.deltas)


def end(router: ScriptedRouter) -> EndMessageRequest:
    """The last end."""
    return [each for each in router.asked if isinstance(each, EndMessageRequest)][-1]


async def _say(ours: Backend, text: str, then: Callable[[], Awaitable[object]] | None = None) -> None:
    """Says something and does something in one block."""
    async with ours.open_message(ALICE) as out:
        await out.write(text)
        if then is not None:
            await then()


async def test_a_message_is_opened_extended_and_ended() -> None:
    async with backend() as (router, ours):
        async with ours.open_message(
            ALICE, key="k", reply_to="m0", attributes={"a": "b"}, producer="p"
        ) as out:
            await out.write("Hello, ")
            await out.write("world")
            assert (out.id, out.text) == ("m1", "Hello, world")
        assert router.asked[0] == OpenMessageRequest(
            address=ALICE, key="k", reply_to="m0", attributes={"a": "b"}, producer="p"
        )
        assert said(router) == "Hello, world"
        last = end(router)
        assert (last.state, last.epoch, last.next_index) == (MESSAGE_STATE_COMPLETE, 7, 1)


async def test_an_exception_ends_it_failed() -> None:
    async with backend() as (router, ours):

        async def fail() -> None:
            raise LookupError("no such file")

        with pytest.raises(LookupError):
            await _say(ours, "so far", fail)
        assert (end(router).state, end(router).error.code) == (MESSAGE_STATE_FAILED, "LOOKUP_ERROR")
        assert said(router) == "so far"


async def test_its_lease_is_kept_while_nothing_is_written() -> None:
    time = FakeTime()
    async with backend(time) as (router, ours), ours.open_message(ALICE) as out:
        await time.asleep_for(5)
        time.advance(5)
        await time.asleep_for(5)
        assert [type(each) for each in router.asked] == [OpenMessageRequest, ExtendMessageRequest]
        await out.write("x")


async def test_calls_that_fail_for_now_are_made_again() -> None:
    time = FakeTime()
    time.jitter = 1.0
    async with backend(time) as (router, ours):
        take, finish = router.answers["ExtendMessage"], router.answers["EndMessage"]
        router.answers["ExtendMessage"] = lambda _: catalogue.ROUTER_UNAVAILABLE
        router.answers["EndMessage"] = lambda _: catalogue.LOG_UNAVAILABLE
        leaving = asyncio.create_task(_say(ours, "hello"))
        await time.asleep_for(1.1)
        router.answers["ExtendMessage"] = take
        time.advance(1.1)
        await time.asleep_for(1.1)
        router.answers["EndMessage"] = finish
        time.advance(1.1)
        await leaving
        assert said(router) == "hellohellohello", "sent again as it may not be on disk; the index tells"


@pytest.mark.parametrize(
    ("state", "raised"),
    [
        (MESSAGE_STATE_CANCELLED, ReplyCancelled),
        (MESSAGE_STATE_EXPIRED, ReplyExpired),
        (MESSAGE_STATE_COMPLETE, Fenced),
    ],
)
async def test_an_end_by_others_interrupts(state: Any, raised: type[Exception]) -> None:
    async with backend() as (router, ours):
        router.answers["ExtendMessage"] = lambda _: catalogue.MESSAGE_ENDED
        router.answers["EndMessage"] = lambda _: EndMessageResponse(state=state)
        with pytest.raises(raised):
            await _say(ours, "x", asyncio.Event().wait)


@pytest.mark.parametrize(
    ("entry", "raised"), [(catalogue.PRODUCER_FENCED, Fenced), (catalogue.UNAUTHORIZED, Refused)]
)
async def test_a_refusal_for_good_interrupts(entry: catalogue.Entry, raised: type[Exception]) -> None:
    async with backend() as (router, ours):
        router.answers["ExtendMessage"] = lambda _: entry
        with pytest.raises(raised):
            await _say(ours, "x", asyncio.Event().wait)


async def test_what_grew_too_large_is_ended_failed() -> None:
    async with backend() as (router, ours):
        router.answers["ExtendMessage"] = lambda _: catalogue.MESSAGE_TOO_LARGE
        with pytest.raises(Refused, match="MESSAGE_TOO_LARGE"):
            await _say(ours, "x", asyncio.Event().wait)
        assert end(router).error.code == "MESSAGE_TOO_LARGE"


async def test_what_has_ended_is_not_opened_again() -> None:
    async with backend() as (router, ours):
        router.answers["OpenMessage"] = lambda _: OpenMessageResponse(
            message=Message(id="m1", state=MESSAGE_STATE_COMPLETE, next_index=3)
        )
        with pytest.raises(AlreadyAnswered, match="COMPLETE") as raised:
            async with ours.open_message(ALICE, key="k"):
                pytest.fail("it is not run")
        assert raised.value.message.id == "m1"
        router.answers["OpenMessage"] = lambda _: catalogue.TOO_MANY_OPEN_MESSAGES
        with pytest.raises(Refused, match="TOO_MANY_OPEN_MESSAGES"):
            async with ours.open_message(ALICE, key="k"):
                pytest.fail("it is not run")


async def test_closing_the_backend_ends_the_block() -> None:
    async with backend() as (_, ours):

        async def say() -> None:
            async with ours.open_message(ALICE) as out:
                while True:
                    await out.write("x" * 10_000)

        saying = asyncio.create_task(say())
        for _ in range(20):
            await asyncio.sleep(0)
        saying.cancel()
        await asyncio.wait({saying})
        assert saying.cancelled()


async def test_messages_are_cancelled_edited_and_recalled() -> None:
    async with backend() as (router, ours):
        router.answers |= {
            "CancelMessage": lambda _: CancelMessageResponse(state=MESSAGE_STATE_CANCELLED),
            "EditMessage": lambda _: EditMessageResponse(position=at(4)),
            "RecallMessage": lambda _: RecallMessageResponse(),
        }
        assert await ours.cancel("demo", "m1") == MESSAGE_STATE_CANCELLED
        assert await ours.edit("demo", "m1", "better") == at(4)
        assert router.asked[-1].parts[0].text.text == "better"
        assert await ours.recall("demo", "m1") is None
        router.answers["RecallMessage"] = lambda _: RecallMessageResponse(position=at(5))
        assert await ours.recall("demo", "m1") == at(5)


async def test_receipts_and_dead_letters_are_read_and_replayed() -> None:
    async with backend() as (router, ours):
        router.answers |= {
            "ListReceipts": lambda _: ListReceiptsResponse(receipts=[Receipt(user="bob", read=at(3))]),
            "ListDeadLetters": lambda _: ListDeadLettersResponse(
                dead_letters=[DeadLetter(delivery_id=4, message=message(3))], more=True
            ),
            "ReplayDeadLetters": lambda _: ReplayDeadLettersResponse(replayed=2),
        }
        page = await ours.list_receipts(ALICE, after="al", limit=2)
        assert (page.receipts[0].user, router.asked[-1].after, router.asked[-1].page_size) == ("bob", "al", 2)
        letters = await ours.list_dead_letters("demo", "echo", after=3, limit=5)
        assert (letters.dead_letters[0].delivery_id, letters.more) == (4, True)
        assert await ours.replay_dead_letters("demo", "echo", [4, 5]) == 2
        assert list(router.asked[-1].delivery_ids) == [4, 5]
