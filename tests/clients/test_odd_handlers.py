"""Handlers with mistakes: each settles its delivery, and leaves the worker and the next attempt alone."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from trunkline.v1.message_pb2 import MESSAGE_STATE_COMPLETE, MESSAGE_STATE_FAILED, MESSAGE_STATE_OPEN
from trunkline_client import Failed, Fenced, Message, Reject, RetryLater, Worker
from trunkline_client.reader_errors import AGENT_FAILED
from trunkline_client.testing import run_worker

from tests.support.patience import patient


class NoText(Exception):
    """An exception whose text cannot be had."""

    def __str__(self) -> str:
        raise ValueError("no text")


class WithoutInit(Failed):
    """A failure of an author who forgot the base class."""

    def __init__(self, length: int) -> None:
        self.length = length


def make_worker() -> Worker:
    return Worker("203.0.113.1:1", tenant="demo", agents=["a"])


#: Makes an exception in the handler, as authors do by mistake; then outcome, reason, and text for readers.
MISTAKES: dict[str, tuple[Callable[[Any], BaseException], str, str, str]] = {
    "text raises": (lambda _: NoText(), "retry", "NoText, whose text raises ValueError", ""),
    "delay is no number": (lambda _: RetryLater(float("nan")), "retry", "ValueError: after_s", ""),
    "delay is a string": (lambda _: RetryLater("5"), "retry", "", ""),  # type: ignore[arg-type]
    "retry's reason": (lambda error: RetryLater(1, error), "retry", "busy", ""),
    "rejection's reason": (lambda error: Reject(error), "reject", "busy", AGENT_FAILED.message),
    "failure's text": (lambda error: Failed(error), "ack", "", AGENT_FAILED.message),
    "failure without text": (lambda _: WithoutInit(3), "ack", "", AGENT_FAILED.message),
    "cancelled by itself": (lambda _: asyncio.CancelledError(), "retry", "CancelledError", ""),
}


@pytest.mark.parametrize("is_plain", [False, True])
@pytest.mark.parametrize("mistake", MISTAKES)
async def test_an_exception_of_any_kind_settles_its_delivery(mistake: str, is_plain: bool) -> None:
    make, outcome, reason, text = MISTAKES[mistake]

    def plain(message: Message) -> None:
        raise make(ValueError("busy"))

    async def coroutine(message: Message) -> None:
        plain(message)

    worker = make_worker()
    worker.handler(plain if is_plain else coroutine)
    async with asyncio.timeout(patient(10)), run_worker(worker) as router:
        for _ in range(2):  # the worker goes on
            delivery = await (await router.deliver("hi")).wait()
            assert delivery.outcome == outcome
            assert delivery.reason.startswith(reason)
            assert [each.error.message for each in delivery.replies] == ([text] if text else [])


@pytest.mark.parametrize(
    ("error", "text"), [(NoText(), AGENT_FAILED.message), (WithoutInit(3), AGENT_FAILED.message)]
)
async def test_an_exception_of_any_kind_ends_its_reply(error: Exception, text: str) -> None:
    worker = make_worker()

    @worker.handler
    async def answer(message: Message) -> None:
        async with worker.reply(message) as out:
            await out.write("so far")
            raise error

    async with asyncio.timeout(patient(10)), run_worker(worker) as router:
        delivery = await (await router.deliver("hi")).wait()
        (reply,) = delivery.replies
        assert (delivery.outcome, reply.state, reply.error.message) == ("ack", MESSAGE_STATE_FAILED, text)


@pytest.mark.parametrize("result", [b"bytes", bytearray(b"bytes"), memoryview(b"bytes")])
async def test_bytes_are_no_sequence_of_replies(result: Any) -> None:
    worker = make_worker()
    worker.handler(lambda _: result)
    async with asyncio.timeout(patient(10)), run_worker(worker) as router:
        delivery = await (await router.deliver("hi")).wait()
        assert delivery.reason.endswith(f"not {type(result).__name__}")


async def test_a_reply_that_is_not_entered_is_none() -> None:
    worker = make_worker()

    @worker.handler
    async def answer(message: Message) -> str:
        worker.reply(message)
        worker.open_message(message.address)
        return "returned"

    async with asyncio.timeout(patient(10)), run_worker(worker) as router:
        delivery = await (await router.deliver("hi")).wait()
        assert [each.text for each in delivery.replies] == ["returned"]
        await router.break_stream()
        assert (await (await router.deliver("again")).wait()).outcome == "ack"
        assert await worker.drain(patient(5))
        assert not router.messages


async def test_a_reply_is_entered_once() -> None:
    worker = make_worker()
    raised: list[BaseException] = []

    @worker.handler
    async def answer(message: Message) -> None:
        reply = worker.reply(message)
        async with reply as out:
            await out.write("once")
        try:
            async with reply as out:
                await out.write("lost")
        except RuntimeError as error:
            raised.append(error)

    async with asyncio.timeout(patient(10)), run_worker(worker) as router:
        delivery = await (await router.deliver("hi")).wait()
        (reply,) = delivery.replies
        assert (reply.text, reply.state) == ("once", MESSAGE_STATE_COMPLETE)
    assert len(raised) == 1


@pytest.mark.parametrize("fails", [False, True])
async def test_a_task_that_a_handler_leaves_behind_writes_no_more(fails: bool) -> None:
    """`asyncio.gather` leaves the others running when one fails, while the next attempt begins."""
    worker = make_worker()
    left: list[asyncio.Task[None]] = []

    async def write(message: Message) -> None:
        async with worker.reply(message) as out:
            await out.write(f"{len(left)} ")
            await asyncio.sleep(patient(60))

    @worker.handler
    async def answer(message: Message) -> None:
        left.append(asyncio.create_task(write(message)))
        await (await delivery.reply()).wait_for_text(f"{len(left)} ")
        if fails:
            raise ValueError

    async with asyncio.timeout(patient(10)), run_worker(worker) as router:
        delivery = await router.deliver("hi")
        await delivery.wait()
        with pytest.raises(Fenced):
            await left[0]
        (reply,) = delivery.replies
        if not fails:
            assert (delivery.outcome, reply.state) == ("ack", MESSAGE_STATE_FAILED)
            return
        assert (delivery.outcome, reply.state) == ("retry", MESSAGE_STATE_OPEN)
        await delivery.redeliver()
        await delivery.wait()
        assert reply.text == "1 2 "
        with pytest.raises(Fenced):
            await left[1]


async def test_no_reply_is_made_once_the_handler_has_ended() -> None:
    worker = make_worker()
    raised: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

    @worker.handler
    async def answer(message: Message) -> None:
        def reply(_: object) -> None:
            try:
                raised.set_result(worker.reply(message))
            except Fenced as error:
                raised.set_exception(error)

        task = asyncio.current_task()
        assert task is not None
        task.add_done_callback(reply)
        raise ValueError

    async with asyncio.timeout(patient(10)), run_worker(worker) as router:
        delivery = await (await router.deliver("hi")).wait()
        with pytest.raises(Fenced):
            await raised
        assert (delivery.outcome, delivery.replies) == ("retry", [])
