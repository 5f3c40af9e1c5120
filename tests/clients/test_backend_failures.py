"""Failures of a backend: errors tell whether a call may have been carried out."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import grpc.aio
import pytest
from trunkline.v1 import catalogue
from trunkline.v1.broadcast_service_pb2 import (
    BroadcastManyResponse,
    BroadcastResponse,
    NumberedResult,
    OpenMessageResponse,
)
from trunkline.v1.error_pb2 import Error
from trunkline.v1.message_pb2 import MESSAGE_STATE_OPEN, Message
from trunkline.v1.presence_service_pb2 import GetStatsResponse
from trunkline_client import (
    Backend,
    OutcomeUnknown,
    Refused,
    TimedOut,
    TransportError,
    TrunklineError,
    Unreachable,
    broadcast_request,
)

from tests.clients.scripted_edge import ALICE, FakeTime
from tests.clients.scripted_router import ScriptedRouter, refuse, scripted_router
from tests.support.patience import patient


@asynccontextmanager
async def backend(timeout_s: float = 5.0) -> AsyncIterator[tuple[ScriptedRouter, Backend]]:
    """A backend, connected to a scripted router."""
    async with (
        scripted_router() as router,
        Backend(router.address, timeout_s=timeout_s, clock=FakeTime().clock) as ours,
    ):
        async with asyncio.timeout(patient(20)):
            yield router, ours


async def unused_address() -> str:
    """An address at which nothing listens."""
    async with scripted_router() as router:
        return router.address


async def connect(router: ScriptedRouter, ours: Backend) -> None:
    """Makes calls until one is answered, so that the next one is sent at once."""
    router.answers["GetStats"] = lambda _: GetStatsResponse()
    while True:
        try:
            await ours.get_stats("demo")
            return
        except Unreachable:
            continue


def test_transport_errors_are_unreachable_or_of_unknown_outcome() -> None:
    assert issubclass(TransportError, TrunklineError)
    assert issubclass(Unreachable, TransportError)
    assert issubclass(OutcomeUnknown, TransportError)
    assert issubclass(TimedOut, OutcomeUnknown)
    assert issubclass(TimedOut, TimeoutError)
    assert not issubclass(Refused, TransportError)
    assert not issubclass(Unreachable, OutcomeUnknown)


# Backend.


async def test_a_call_to_a_router_that_is_not_there_is_unreachable() -> None:
    address = await unused_address()
    async with Backend(address) as ours:
        with pytest.raises(Unreachable, match=f"Cannot reach {address}: .*refused"):
            await ours.broadcast(ALICE, "hello")
        with pytest.raises(Unreachable):
            await ours.get_stats("demo")
        with pytest.raises(Unreachable):
            await anext(ours.watch_connections(ALICE))


async def test_a_connection_that_is_not_made_in_time_is_unreachable() -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        async with Backend(f"127.0.0.1:{silent.getsockname()[1]}", timeout_s=0.2) as ours:
            with pytest.raises(Unreachable, match=r"no connection within 0\.2 s"):
                await ours.broadcast(ALICE, "hello")


async def test_a_router_that_comes_back_is_reached_by_the_next_call() -> None:
    address = await unused_address()
    async with Backend(address) as ours:
        with pytest.raises(Unreachable):
            await ours.broadcast(ALICE, "hello")
        async with scripted_router(address) as router, asyncio.timeout(patient(10)):
            router.answers["Broadcast"] = lambda _: BroadcastResponse(message_id="m1")
            while True:
                try:
                    assert (await ours.broadcast(ALICE, "hello")).message_id == "m1"
                    break
                except Unreachable:
                    await asyncio.sleep(0.05)


@pytest.mark.parametrize(
    "status",
    [
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.UNKNOWN,
        grpc.StatusCode.INTERNAL,
        grpc.StatusCode.CANCELLED,
        grpc.StatusCode.RESOURCE_EXHAUSTED,
    ],
    ids=lambda status: status.name,
)
async def test_a_failure_after_sending_is_of_unknown_outcome_unless_the_call_reads(status: Any) -> None:
    async with backend() as (router, ours):
        router.answers |= {"Broadcast": lambda _: status, "GetStats": lambda _: status}
        with pytest.raises(OutcomeUnknown, match="may have been carried out"):
            await ours.broadcast(ALICE, "hello")
        with pytest.raises(Unreachable, match=status.name):
            await ours.get_stats("demo")


async def test_a_router_that_dies_after_the_request_leaves_the_outcome_unknown() -> None:
    server = grpc.aio.server()
    taken = asyncio.Event()

    class Dying(grpc.aio.ServerInterceptor):
        async def intercept_service(self, continuation: Any, handler_call_details: Any) -> Any:
            async def hang(request: bytes, context: Any) -> bytes:
                taken.set()
                await asyncio.Event().wait()
                return b""

            return grpc.unary_unary_rpc_method_handler(hang)

    server = grpc.aio.server(interceptors=[Dying()])
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with Backend(f"127.0.0.1:{port}") as ours:
        calling = asyncio.create_task(ours.broadcast(ALICE, "hello"))
        await asyncio.wait_for(taken.wait(), 10)
        await server.stop(0)
        with pytest.raises(OutcomeUnknown):
            await calling


async def test_a_call_without_an_answer_in_time_times_out_unless_it_reads() -> None:
    async with backend(timeout_s=1.0) as (router, ours):
        await connect(router, ours)
        never = asyncio.Event()
        router.answers |= {"Broadcast": lambda _: never.wait(), "GetStats": lambda _: never.wait()}
        with pytest.raises(TimedOut):
            await ours.broadcast(ALICE, "hello")
        with pytest.raises(Unreachable):
            await ours.get_stats("demo")
        never.set()


async def test_a_rejection_of_the_catalogue_is_refused() -> None:
    async with backend() as (router, ours):
        router.answers["Broadcast"] = lambda _: catalogue.LOG_UNAVAILABLE
        with pytest.raises(Refused) as refused:
            await ours.broadcast(ALICE, "hello")
        assert (refused.value.code, refused.value.retryable) == ("LOG_UNAVAILABLE", True)


async def test_a_rejection_of_another_domain_is_of_unknown_outcome() -> None:
    router = ScriptedRouter()  # type: ignore[abstract]

    class Foreign(grpc.aio.ServerInterceptor):
        async def intercept_service(self, continuation: Any, handler_call_details: Any) -> Any:
            async def answer(request: bytes, context: Any) -> None:
                await refuse(context, catalogue.LOG_UNAVAILABLE, domain="proxy.example")

            return grpc.unary_unary_rpc_method_handler(answer)

    server = grpc.aio.server(interceptors=[Foreign()])
    router.address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    await server.start()
    try:
        async with Backend(router.address) as ours:
            with pytest.raises(OutcomeUnknown):
                await ours.broadcast(ALICE, "hello")
    finally:
        await server.stop(0)


async def test_an_internal_error_of_the_router_leaves_the_outcome_unknown() -> None:
    async with backend() as (router, ours):
        router.answers |= {
            "Broadcast": lambda _: catalogue.INTERNAL,
            "GetStats": lambda _: catalogue.INTERNAL,
        }
        with pytest.raises(OutcomeUnknown) as unknown:
            await ours.broadcast(ALICE, "hello")
        assert unknown.value.retry_after_ms == catalogue.INTERNAL.retry_after_ms
        with pytest.raises(Refused, match="INTERNAL"):
            await ours.get_stats("demo")


async def test_a_status_that_rejects_before_any_handler_is_refused() -> None:
    async with backend() as (router, ours):
        router.answers["Broadcast"] = lambda _: grpc.StatusCode.UNIMPLEMENTED
        with pytest.raises(Refused) as refused:
            await ours.broadcast(ALICE, "hello")
        assert (refused.value.code, refused.value.retryable) == ("UNIMPLEMENTED", False)


async def test_closing_the_backend_leaves_the_outcome_of_its_calls_unknown() -> None:
    async with backend() as (router, ours):
        taken, never = asyncio.Event(), asyncio.Event()

        async def hang() -> None:
            taken.set()
            await never.wait()

        router.answers["Broadcast"] = lambda _: hang()
        calling = asyncio.create_task(ours.broadcast(ALICE, "hello"))
        await taken.wait()
        await ours.close()
        with pytest.raises(OutcomeUnknown, match="closed"):
            await calling
        never.set()


async def test_cancelling_a_call_is_a_cancel() -> None:
    async with backend() as (router, ours):
        taken, never = asyncio.Event(), asyncio.Event()

        async def hang() -> None:
            taken.set()
            await never.wait()

        router.answers["Broadcast"] = lambda _: hang()
        calling = asyncio.create_task(ours.broadcast(ALICE, "hello"))
        await taken.wait()
        calling.cancel()
        with pytest.raises(asyncio.CancelledError):
            await calling
        never.set()


# Publisher.


async def test_a_ticket_tells_whether_its_request_was_written() -> None:
    time = FakeTime()
    time.jitter = 1.0
    async with scripted_router() as router, Backend(router.address, clock=time.clock) as ours:
        publisher = ours.publisher()
        await publisher.__aenter__()
        written = publisher.publish(broadcast_request(ALICE, "a", idempotency_key="a"))
        side = await router.stream()
        await side.read()
        side.end()
        await time.wait_for_sleeper()
        unwritten = publisher.publish(broadcast_request(ALICE, "b", idempotency_key="b"))
        await publisher.__aexit__(KeyError, KeyError("x"), None)
        with pytest.raises(OutcomeUnknown, match="closed"):
            await written
        with pytest.raises(Unreachable, match="closed"):
            await unwritten


async def test_a_ticket_of_a_router_that_is_not_there_is_unreachable() -> None:
    async with Backend(await unused_address()) as ours:
        publisher = ours.publisher()
        await publisher.__aenter__()
        ticket = publisher.publish(broadcast_request(ALICE, "a", idempotency_key="a"))
        await publisher.__aexit__(KeyError, KeyError("x"), None)
        with pytest.raises(Unreachable, match="closed"):
            await ticket
        with pytest.raises(Unreachable, match="closed"):
            publisher.publish(broadcast_request(ALICE, "b"))


async def test_an_internal_error_for_one_request_leaves_its_outcome_unknown() -> None:
    async with backend() as (router, ours), ours.publisher() as publisher:
        ticket = publisher.publish(broadcast_request(ALICE, "a"))
        side = await router.stream()
        await side.read()
        error = Error(code="INTERNAL", message="it broke", retryable=True)
        await side.write(BroadcastManyResponse(results=[NumberedResult(number=1, error=error)]))
        with pytest.raises(OutcomeUnknown):
            await ticket


# Open messages.


async def test_opening_a_message_fails_like_any_other_call() -> None:
    async with Backend(await unused_address()) as ours:
        with pytest.raises(Unreachable):
            async with ours.open_message(ALICE):
                pytest.fail("the block is not entered")
    async with backend() as (router, ours):
        router.answers["OpenMessage"] = lambda _: grpc.StatusCode.UNKNOWN
        with pytest.raises(OutcomeUnknown):
            async with ours.open_message(ALICE):
                pytest.fail("the block is not entered")


async def test_closing_the_backend_leaves_the_outcome_of_an_open_message_unknown() -> None:
    async with backend() as (router, ours):
        router.answers["OpenMessage"] = lambda _: OpenMessageResponse(
            message=Message(id="m1", state=MESSAGE_STATE_OPEN), epoch=7
        )
        router.answers["ExtendMessage"] = lambda _: asyncio.Event().wait()

        async def write() -> None:
            async with ours.open_message(ALICE) as out:
                await out.write("x")
                await ours.close()
                await asyncio.Event().wait()

        with pytest.raises(OutcomeUnknown, match="closed"):
            await write()
