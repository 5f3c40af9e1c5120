"""Messages that a backend writes piece by piece, edits and recalls."""

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
from tests.support.patience import patient


@asynccontextmanager
async def backend(time: FakeTime | None = None) -> AsyncIterator[tuple[ScriptedRouter, Backend]]:
    """A backend and a router that accepts everything."""
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
        async with asyncio.timeout(patient(5)):
            yield router, ours


def text_written(router: ScriptedRouter) -> str:
    """The text of all deltas that were received."""
    calls = [each for each in router.requests if isinstance(each, ExtendMessageRequest)]
    assert all((each.tenant, each.message_id, each.epoch) == ("demo", "m1", 7) for each in calls)
    return "".join(delta.text for each in calls for delta in each.deltas)


def end(router: ScriptedRouter) -> EndMessageRequest:
    """The last end that was received."""
    return [each for each in router.requests if isinstance(each, EndMessageRequest)][-1]


async def _write(ours: Backend, text: str, then: Callable[[], Awaitable[object]] | None = None) -> None:
    """Writes a text and then runs a function, in one block."""
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
        assert router.requests[0] == OpenMessageRequest(
            address=ALICE, key="k", reply_to="m0", attributes={"a": "b"}, producer="p"
        )
        assert text_written(router) == "Hello, world"
        last = end(router)
        assert (last.state, last.epoch, last.next_index) == (MESSAGE_STATE_COMPLETE, 7, 1)


async def test_an_exception_ends_it_failed() -> None:
    async with backend() as (router, ours):

        async def fail() -> None:
            raise LookupError("no such file")

        with pytest.raises(LookupError):
            await _write(ours, "so far", fail)
        assert (end(router).state, end(router).error.code) == (MESSAGE_STATE_FAILED, "AGENT_FAILED")
        assert text_written(router) == "so far"


async def test_the_lease_is_renewed_while_nothing_is_written() -> None:
    time = FakeTime()
    async with backend(time) as (router, ours), ours.open_message(ALICE) as out:
        await time.wait_for_sleep(5)
        time.advance(5)
        await time.wait_for_sleep(5)
        assert [type(each) for each in router.requests] == [OpenMessageRequest, ExtendMessageRequest]
        await out.write("x")


async def test_a_cancel_interrupts_a_block_that_waits_at_the_next_renewal() -> None:
    time = FakeTime()
    async with backend(time) as (router, ours):
        writing = asyncio.create_task(_write(ours, "", asyncio.Event().wait))
        await time.wait_for_sleep(5)
        router.answers["ExtendMessage"] = lambda _: catalogue.MESSAGE_ENDED
        router.answers["EndMessage"] = lambda _: EndMessageResponse(state=MESSAGE_STATE_CANCELLED)
        time.advance(5)
        with pytest.raises(ReplyCancelled):
            await writing


async def test_calls_that_fail_for_now_are_repeated() -> None:
    time = FakeTime()
    time.jitter = 1.0
    async with backend(time) as (router, ours):
        take, finish = router.answers["ExtendMessage"], router.answers["EndMessage"]
        router.answers["ExtendMessage"] = lambda _: catalogue.ROUTER_UNAVAILABLE
        router.answers["EndMessage"] = lambda _: catalogue.LOG_UNAVAILABLE
        leaving = asyncio.create_task(_write(ours, "hello"))
        await time.wait_for_sleep(1.1)
        router.answers["ExtendMessage"] = take
        time.advance(1.1)
        await time.wait_for_sleep(1.1)
        router.answers["EndMessage"] = finish
        time.advance(1.1)
        await leaving
        assert text_written(router) == "hellohellohello", (
            "resent because it may not be on disk; the router drops repeated indexes"
        )


@pytest.mark.parametrize(
    ("state", "raised"),
    [
        (MESSAGE_STATE_CANCELLED, ReplyCancelled),
        (MESSAGE_STATE_EXPIRED, ReplyExpired),
        (MESSAGE_STATE_COMPLETE, Fenced),
    ],
)
async def test_an_end_by_others_interrupts_the_block(state: Any, raised: type[Exception]) -> None:
    async with backend() as (router, ours):
        router.answers["ExtendMessage"] = lambda _: catalogue.MESSAGE_ENDED
        router.answers["EndMessage"] = lambda _: EndMessageResponse(state=state)
        with pytest.raises(raised):
            await _write(ours, "x", asyncio.Event().wait)


@pytest.mark.parametrize(
    ("entry", "raised"), [(catalogue.PRODUCER_FENCED, Fenced), (catalogue.UNAUTHORIZED, Refused)]
)
async def test_a_final_rejection_interrupts_the_block(
    entry: catalogue.Entry, raised: type[Exception]
) -> None:
    async with backend() as (router, ours):
        router.answers["ExtendMessage"] = lambda _: entry
        with pytest.raises(raised):
            await _write(ours, "x", asyncio.Event().wait)


async def test_a_message_that_is_too_large_ends_failed() -> None:
    async with backend() as (router, ours):
        router.answers["ExtendMessage"] = lambda _: catalogue.MESSAGE_TOO_LARGE
        with pytest.raises(Refused, match="MESSAGE_TOO_LARGE"):
            await _write(ours, "x", asyncio.Event().wait)
        assert end(router).error.code == "MESSAGE_TOO_LARGE"


async def test_a_message_that_has_ended_is_not_opened_again() -> None:
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


async def test_cancelling_the_block_ends_it_at_once() -> None:
    async with backend() as (_, ours):

        async def write_forever() -> None:
            async with ours.open_message(ALICE) as out:
                while True:
                    await out.write("x" * 10_000)

        writing = asyncio.create_task(write_forever())
        for _ in range(20):
            await asyncio.sleep(0)
        writing.cancel()
        await asyncio.wait({writing})
        assert writing.cancelled()


async def test_messages_are_cancelled_edited_and_recalled() -> None:
    async with backend() as (router, ours):
        router.answers |= {
            "CancelMessage": lambda _: CancelMessageResponse(state=MESSAGE_STATE_CANCELLED),
            "EditMessage": lambda _: EditMessageResponse(position=at(4)),
            "RecallMessage": lambda _: RecallMessageResponse(),
        }
        assert await ours.cancel("demo", "m1") == MESSAGE_STATE_CANCELLED
        assert await ours.edit("demo", "m1", "better") == at(4)
        assert router.requests[-1].parts[0].text.text == "better"
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
        assert (page.receipts[0].user, router.requests[-1].after, router.requests[-1].page_size) == (
            "bob",
            "al",
            2,
        )
        letters = await ours.list_dead_letters("demo", "echo", after=3, limit=5)
        assert (letters.dead_letters[0].delivery_id, letters.more) == (4, True)
        assert await ours.replay_dead_letters("demo", "echo", [4, 5]) == 2
        assert list(router.requests[-1].delivery_ids) == [4, 5]
