"""Statuses without an entry of the catalogue: some are final, after the others the same call may succeed."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
import pytest
from trunkline.v1.broadcast_service_pb2 import OpenMessageResponse
from trunkline.v1.message_pb2 import MESSAGE_STATE_OPEN, Message
from trunkline_client import Backend, OutcomeUnknown, TransportError, Unreachable, Worker, broadcast_request

from tests.clients.scripted_edge import ALICE, FakeTime
from tests.clients.scripted_router import scripted_router
from tests.support.patience import patient

FINAL = [
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.FAILED_PRECONDITION,
    grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.ALREADY_EXISTS,
    grpc.StatusCode.OUT_OF_RANGE,
    grpc.StatusCode.DATA_LOSS,
]

finals = pytest.mark.parametrize("status", FINAL, ids=lambda status: status.name)


@pytest.mark.parametrize(
    "status",
    [*FINAL, grpc.StatusCode.UNKNOWN, grpc.StatusCode.RESOURCE_EXHAUSTED],
    ids=lambda each: each.name,
)
async def test_an_error_knows_whether_its_status_is_final(status: Any) -> None:
    async with scripted_router() as router, Backend(router.address) as ours:
        router.answers |= {"Broadcast": lambda _: status, "GetStats": lambda _: status}
        for call in (ours.broadcast(ALICE, "hello"), ours.get_stats("demo")):
            with pytest.raises(TransportError) as failed:
                await call
            assert failed.value.retryable == (status not in FINAL)


@finals
async def test_a_final_status_ends_a_publisher_and_its_tickets(status: Any) -> None:
    async with (
        asyncio.timeout(patient(10)),
        scripted_router() as router,
        Backend(router.address) as ours,
        ours.publisher() as publisher,
    ):
        ticket = publisher.publish(broadcast_request(ALICE, "a", idempotency_key="a"))
        side = await router.stream()
        await side.read()
        side.end(status)
        with pytest.raises(OutcomeUnknown) as unknown:
            await ticket
        assert not unknown.value.retryable
        with pytest.raises(Unreachable, match=status.name):
            publisher.publish(broadcast_request(ALICE, "b"))


@pytest.mark.parametrize("call", ["ExtendMessage", "EndMessage"])
@finals
async def test_a_final_status_ends_an_open_message(status: Any, call: str) -> None:
    async with (
        asyncio.timeout(patient(10)),
        scripted_router() as router,
        Backend(router.address) as ours,
    ):
        message = Message(id="m1", state=MESSAGE_STATE_OPEN)
        router.answers["OpenMessage"] = lambda _: OpenMessageResponse(message=message, epoch=7)
        router.answers[call] = lambda _: status

        async def write() -> None:
            async with ours.open_message(ALICE) as out:
                if call == "ExtendMessage":
                    await out.write("x")

        with pytest.raises(OutcomeUnknown, match=status.name):
            await write()
        assert len(router.requests) == 2


@finals
async def test_a_final_status_ends_a_worker(status: Any) -> None:
    async with asyncio.timeout(patient(10)), scripted_router() as router:
        worker = Worker(router.address, tenant="demo", agents=["echo"], clock=FakeTime().clock)
        running = asyncio.create_task(worker.run(lambda message: None))
        (await router.stream()).end(status)
        with pytest.raises(Unreachable, match=status.name):
            await running
