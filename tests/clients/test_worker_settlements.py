"""Settlements of a worker: acks, retries and rejections, across breaks of the stream."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import pytest
from trunkline.v1.agent_service_pb2 import AttachResponse, Delivery, SettlementResult
from trunkline.v1.error_pb2 import Error
from trunkline_client import Failed, Message, Reject, Reply, RetryLater, text, text_of
from trunkline_client.reader_errors import AGENT_FAILED
from trunkline_client.settlement import settlement_for_error, settlement_for_result

from tests.clients.scripted_edge import FakeTime, eventually
from tests.clients.scripted_worker import echo, read_settled, serving


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
        async with serving(handler) as (_, side):
            await side.deliver(1, 2, attempt=3)
            settlements = await side.read_until("settlements")
            while len(settlements) < 2:
                settlements += await side.read_until("settlements")
            (failed,) = [each for each in settlements if each.delivery_id == 1]
            assert (failed.retry.after_ms, failed.retry.reason) == (0, "RuntimeError: no model")
            (done,) = [each for each in settlements if each.delivery_id == 2]
            assert done.WhichOneof("outcome") is None
        ours = [each for each in caplog.records if each.name == "trunkline_client"]
        (record,) = [each for each in ours if each.levelno == logging.ERROR]
        assert "m1" in record.getMessage()
        assert "no model" in record.getMessage()
        assert record.exc_info is None


async def test_failed_before_a_reply_answers_with_its_text_and_is_not_retried() -> None:
    def answer(message: Message) -> str:
        raise Failed("" if text_of(message) == "2" else "No credit left")

    async with serving(answer) as (_, side):
        await side.deliver(1)
        (settlement,) = await side.read_until("settlements")
        assert settlement.WhichOneof("outcome") is None
        assert [reply.error for reply in settlement.replies] == [
            Error(code="AGENT_FAILED", message="No credit left")
        ]
        await side.deliver(2)
        (settlement,) = await side.read_until("settlements")
        assert settlement.replies[0].error == AGENT_FAILED


@pytest.mark.parametrize(
    ("error", "minor", "after_ms"),
    [
        (RuntimeError(), 5, 0),
        (RetryLater(), 5, 0),
        (RetryLater(0), 5, 1),
        (RetryLater(7200), 5, 3_600_000),
        (RuntimeError(), 4, 4000),
        (RetryLater(), 4, 4000),
        (RetryLater(0.5), 4, 500),
    ],
)
def test_the_router_chooses_delays_unless_it_is_older(error: Exception, minor: int, after_ms: int) -> None:
    delivery = Delivery(delivery_id=1, attempt=3)
    settlement = settlement_for_error(delivery, error, failure_reported=False, router_minor=minor)
    assert settlement is not None
    assert (settlement.WhichOneof("outcome"), settlement.retry.after_ms) == ("retry", after_ms)


def test_an_older_router_gets_a_failure_as_a_rejection() -> None:
    failed = Failed("No credit left")
    settlement = settlement_for_error(Delivery(), failed, failure_reported=False, router_minor=4)
    assert settlement is not None
    assert settlement.reject.reason == "No credit left"


async def test_a_redelivery_during_handling_is_handled_once() -> None:
    gate = asyncio.Event()
    calls = 0

    async def answer(message: Message) -> str:
        nonlocal calls
        calls += 1
        await gate.wait()
        return "done"

    async with serving(answer) as (_, side):
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

    async with serving(answer) as (router, side):
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

    async with serving(answer, time) as (router, side):
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
    async with serving(echo, time) as (_, side):
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
    async with serving(echo) as (_, side):
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
        async with serving(handler) as (_, side):
            await side.deliver(1, 2)
            settlements = await side.read_until("settlements")
            while len(settlements) < 2:
                settlements += await side.read_until("settlements")
            later, given_up = sorted(settlements, key=lambda each: each.delivery_id)
            assert (later.retry.after_ms, later.retry.reason) == (2500, "the model is busy")
            assert given_up.reject.reason == "spam"


async def test_a_rejected_settlement_is_logged_and_the_worker_continues(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with serving(echo) as (_, side):
        error = Error(code="DELIVERY_NOT_HELD", message="Delivery 7 is not held")
        await side.write(AttachResponse(results=[SettlementResult(delivery_id=7, error=error)]))
        await side.deliver(1)
        await read_settled(side)
    assert "Delivery 7 is not held" in caplog.text


def test_a_handler_may_return_one_reply_several_or_none() -> None:
    (part,) = text("a")
    assert not settlement_for_result(1, None).replies
    for returned in ("a", part, Reply(parts=[part]), ["a"], [part], [Reply(parts=[part])]):
        assert settlement_for_result(1, returned).replies[0] == Reply(parts=[part])
    assert len(settlement_for_result(1, ["a", "b"]).replies) == 2
    with pytest.raises(TypeError, match="not int"):
        settlement_for_result(1, [7])  # type: ignore[list-item]
    with pytest.raises(TypeError, match="not int"):
        settlement_for_result(1, 7)  # type: ignore[arg-type]


async def test_a_handler_that_yields_learns_to_stream(caplog: pytest.LogCaptureFixture) -> None:
    async def yields(message: Message) -> Any:
        yield "a"

    def yields_at_once(message: Message) -> Any:
        yield "a"

    for handler in (yields, yields_at_once):
        async with serving(handler) as (_, side):
            await side.deliver(1)
            (failed,) = await side.read_until("settlements")
            assert "write_from" in failed.retry.reason
