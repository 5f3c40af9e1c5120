"""A backend and a publisher against a scripted router."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from trunkline.v1 import catalogue
from trunkline.v1.address_pb2 import Address
from trunkline.v1.broadcast_service_pb2 import (
    BroadcastManyResponse,
    BroadcastRequest,
    BroadcastResponse,
    NumberedResult,
)
from trunkline.v1.error_pb2 import Error
from trunkline.v1.history_service_pb2 import (
    GetMessageResponse,
    ListMessagesResponse,
    ResetConversationResponse,
)
from trunkline.v1.message_pb2 import WITHOUT_WORKER_KEEP
from trunkline.v1.presence_service_pb2 import (
    CloseConnectionsResponse,
    Connection,
    ConnectionChange,
    CountConnectionsResponse,
    GetStatsResponse,
    ListConnectionsResponse,
    ListTopicsResponse,
    TopicListeners,
    WatchConnectionsResponse,
)
from trunkline_client import (
    Backend,
    OutcomeUnknown,
    Publisher,
    QueueFull,
    Refused,
    Unreachable,
    broadcast_request,
)
from trunkline_client.publish_queue import MAX_BATCH_BYTES, PublishQueue

from tests.clients.scripted_edge import ALICE, FakeTime, at, message
from tests.clients.scripted_router import ScriptedRouter, StreamSide, scripted_router


@asynccontextmanager
async def backend() -> AsyncIterator[tuple[ScriptedRouter, Backend]]:
    """A backend and its router."""
    async with scripted_router() as router, Backend(router.address, clock=FakeTime().clock) as backend:
        yield router, backend


async def test_broadcast_sends_every_field_and_returns_the_response() -> None:
    async with backend() as (router, ours):
        router.answers["Broadcast"] = lambda _: BroadcastResponse(
            message_id="m1", position=at(1), connections=2
        )
        taken = await ours.broadcast(
            ALICE,
            "hello",
            reply_to="m0",
            attributes={"k": "v"},
            idempotency_key="key",
            require_connection=True,
            without_worker="keep",
        )
        assert (taken.message_id, taken.position, taken.connections) == ("m1", at(1), 2)
        expected = broadcast_request(
            ALICE,
            "hello",
            reply_to="m0",
            attributes={"k": "v"},
            idempotency_key="key",
            require_connection=True,
            without_worker="keep",
        )
        assert router.requests == [expected]
        assert expected.without_worker == WITHOUT_WORKER_KEEP


async def test_a_rejection_carries_its_code_and_retry_delay() -> None:
    async with backend() as (router, ours):
        router.answers["Broadcast"] = lambda _: catalogue.LOG_UNAVAILABLE
        with pytest.raises(Refused, match=catalogue.LOG_UNAVAILABLE.text) as refused:
            await ours.broadcast(ALICE, "hello")
        assert (refused.value.code, refused.value.retryable, refused.value.retry_after_ms) == (
            "LOG_UNAVAILABLE",
            True,
            1000,
        )
        router.answers["GetMessage"] = lambda _: catalogue.MESSAGE_NOT_FOUND
        with pytest.raises(Refused) as refused:
            await ours.get_message("demo", "m1")
        assert (refused.value.code, refused.value.retryable) == ("MESSAGE_NOT_FOUND", False)


async def test_history_is_read_and_erased() -> None:
    async with backend() as (router, ours):
        router.answers |= {
            "ListMessages": lambda _: ListMessagesResponse(messages=[message(3)], more=True),
            "GetMessage": lambda _: GetMessageResponse(message=message(3)),
            "ResetConversation": lambda _: ResetConversationResponse(erased=3),
        }
        page = await ours.list_messages(ALICE, before=at(4), limit=1)
        assert (list(page.messages), page.more) == ([message(3)], True)
        assert router.requests[-1].before == at(4)
        assert await ours.get_message("demo", "m3") == message(3)
        assert await ours.erase_history(ALICE) == 3
        with pytest.raises(ValueError, match="not both"):
            await ours.list_messages(ALICE, before=at(1), after=at(2))


async def test_connections_are_iterated_across_pages() -> None:
    pages = {
        "": ListConnectionsResponse(connections=[Connection(connection_id="a")], next_page_token="2"),
        "2": ListConnectionsResponse(connections=[Connection(connection_id="b")]),
    }
    async with backend() as (router, ours):
        router.answers |= {
            "ListConnections": lambda request: pages[request.page_token],
            "GetStats": lambda _: GetStatsResponse(connections=2),
            "CloseConnections": lambda _: CloseConnectionsResponse(connections=2),
        }
        found = [each.connection_id async for each in ours.connections(ALICE)]
        assert found == ["a", "b"]
        assert (await ours.get_stats("demo")).connections == 2
        assert await ours.close_connections(ALICE, reason="closing time", reconnect=True) == 2
        assert (router.requests[-1].reason, router.requests[-1].reconnect) == ("closing time", True)


async def test_connections_are_counted_and_topics_are_iterated_across_pages() -> None:
    team, user = TopicListeners(address=ALICE, connections=2), Address(tenant="demo", user="alice")
    pages = [
        ListTopicsResponse(topics=[team], more=True),
        ListTopicsResponse(topics=[TopicListeners(address=user, connections=1)]),
    ]
    async with backend() as (router, ours):
        router.answers |= {
            "CountConnections": lambda _: CountConnectionsResponse(connections=3, users=2),
            "ListTopics": lambda request: pages[request.HasField("after")],
        }
        counted = await ours.count_connections(ALICE)
        assert (counted.connections, counted.users) == (3, 2)
        found = [each.address async for each in ours.topics(Address(tenant="demo"))]
        assert found == [ALICE, user]
        assert router.requests[-1].after == ALICE


async def test_connections_are_watched_until_the_caller_stops_or_the_stream_breaks() -> None:
    async with backend() as (router, ours), aclosing(ours.watch_connections(ALICE)) as changes:
        watching = asyncio.ensure_future(anext(changes))
        side = await router.stream()
        change = ConnectionChange(connection=Connection(connection_id="a"))
        await side.write(WatchConnectionsResponse(changes=[change]))
        assert await watching == [change]
        side.end(catalogue.OVERLOADED)
        with pytest.raises(Refused) as refused:
            await anext(changes)
        assert refused.value.code == "OVERLOADED"


@pytest.mark.parametrize("waiting", [True, False])
async def test_closing_the_backend_ends_a_watch_as_unreachable(waiting: bool) -> None:
    async with backend() as (router, ours), aclosing(ours.watch_connections(ALICE)) as changes:
        first = asyncio.ensure_future(anext(changes))
        side = await router.stream()
        await side.write(WatchConnectionsResponse())
        assert await first == []
        following = asyncio.ensure_future(anext(changes))
        if waiting:
            await asyncio.sleep(0.01)
        await ours.close()
        with pytest.raises(Unreachable, match="the backend was closed"):
            await following


async def test_cancelling_a_watch_is_a_cancel() -> None:
    async with backend() as (router, ours), aclosing(ours.watch_connections(ALICE)) as changes:
        watching = asyncio.ensure_future(anext(changes))
        await router.stream()
        watching.cancel()
        with pytest.raises(asyncio.CancelledError):
            await watching


def request(key: str = "", text: str = "hello") -> BroadcastRequest:
    """A broadcast."""
    return broadcast_request(ALICE, text, idempotency_key=key)


async def answer(side: StreamSide, *numbers: int) -> None:
    """Answers requests by their numbers."""
    results = [
        NumberedResult(number=number, response=BroadcastResponse(message_id=f"m{number}"))
        for number in numbers
    ]
    await side.write(BroadcastManyResponse(results=results))


async def read(side: StreamSide, count: int) -> list[tuple[int, str]]:
    """Reads the next requests; returns their numbers and keys."""
    found: list[tuple[int, str]] = []
    while len(found) < count:
        batch: Any = await side.read()
        found += [(each.number, each.request.idempotency_key) for each in batch.requests]
    return found


async def test_requests_published_while_a_batch_is_written_form_the_next_batch() -> None:
    async with backend() as (router, ours), ours.publisher() as publisher:
        tickets = [publisher.publish(request()) for _ in range(100)]
        side = await router.stream()
        batch = await side.read()
        assert [each.number for each in batch.requests] == list(range(1, 101))
        await answer(side, *range(1, 101))
        assert [(await ticket).message_id for ticket in tickets] == [f"m{n}" for n in range(1, 101)]


async def test_a_rejected_request_fails_only_its_own_ticket() -> None:
    async with backend() as (router, ours), ours.publisher() as publisher:
        refused, taken = publisher.publish(request()), publisher.publish(request())
        side = await router.stream()
        await read(side, 2)
        error = Error(code="NO_ACTIVE_CONNECTION", message="No active connections", retryable=True)
        await side.write(BroadcastManyResponse(results=[NumberedResult(number=1, error=error)]))
        await answer(side, 2)
        assert (await taken).message_id == "m2"
        with pytest.raises(Refused, match="No active connections"):
            await refused


async def test_send_waits_for_room_and_publish_does_not() -> None:
    async with backend() as (router, ours), ours.publisher(max_unanswered=2) as publisher:
        for _ in range(2):
            await publisher.send(request())
        with pytest.raises(QueueFull):
            publisher.publish(request())
        third = asyncio.create_task(publisher.send(request()))
        side = await router.stream()
        await read(side, 2)
        assert not third.done()
        await answer(side, 1)
        ticket = await third
        await read(side, 1)
        await answer(side, 2, 3)
        assert (await ticket).message_id == "m3"


async def test_after_a_broken_stream_only_requests_with_a_key_are_resent() -> None:
    async with backend() as (router, ours), ours.publisher() as publisher:
        tickets = [publisher.publish(request(key)) for key in ("a", "", "b")]
        side = await router.stream()
        await read(side, 3)
        await answer(side, 1)
        await tickets[0]
        side.end()
        again = await router.stream()
        tickets.append(publisher.publish(request("c")))
        assert await read(again, 2) == [(3, "b"), (4, "c")]
        await answer(again, 3, 4)
        assert [(await tickets[index]).message_id for index in (2, 3)] == ["m3", "m4"]
        with pytest.raises(OutcomeUnknown, match="idempotency key"):
            await tickets[1]


async def test_unwritten_requests_wait_for_an_absent_router() -> None:
    time = FakeTime()
    async with scripted_router() as router:
        pass
    async with Backend(router.address, clock=time.clock) as ours, ours.publisher() as publisher:
        time.jitter = 1.0
        ticket = publisher.publish(request())
        await time.wait_for_sleep(0.1)
        async with scripted_router(router.address) as back:
            time.jitter = 0.0
            time.advance(0.1)
            side = await back.stream()
            assert await read(side, 1) == [(1, "")]
            await answer(side, 1)
            assert (await ticket).message_id == "m1"


async def test_leaving_a_publisher_by_an_exception_fails_unanswered_tickets() -> None:
    async with backend() as (router, ours):
        publishing = ours.publisher()
        publisher = await publishing.__aenter__()
        ticket = publisher.publish(request("a"))
        await read(await router.stream(), 1)
        assert not await publishing.__aexit__(KeyError, KeyError("x"), None)
        with pytest.raises(OutcomeUnknown, match="closed"):
            await ticket


async def test_a_publisher_that_is_rejected_for_good_fails_all_tickets() -> None:
    async with backend() as (router, ours), ours.publisher() as publisher:
        ticket = publisher.publish(request("a"))
        side = await router.stream()
        await read(side, 1)
        side.end(catalogue.UNAUTHORIZED)
        with pytest.raises(OutcomeUnknown, match="Authentication failed") as unknown:
            await ticket
        assert isinstance(unknown.value.__cause__, Refused)
        with pytest.raises(Refused, match="Authentication failed"):
            await publisher.send(request("b"))


async def test_a_request_over_the_size_limit_is_rejected_at_once() -> None:
    async with backend() as (_, ours), ours.publisher() as publisher:
        with pytest.raises(Refused, match="bytes"):
            publisher.publish(request(text="x" * MAX_BATCH_BYTES))


async def test_leaving_a_publisher_waits_for_every_answer() -> None:
    async with backend() as (router, ours):

        async def publish() -> asyncio.Future[BroadcastResponse]:
            async with ours.publisher() as publisher:
                assert isinstance(publisher, Publisher)
                return publisher.publish(request())

        publishing = asyncio.create_task(publish())
        side = await router.stream()
        await read(side, 1)
        assert not publishing.done()
        await answer(side, 1)
        assert (await publishing).done()


@given(st.lists(st.sampled_from(["add", "add_keyed", "write", "answer", "lose"]), max_size=60))
def test_a_publish_queue_ends_each_request_once_and_keeps_their_order(steps: list[str]) -> None:
    pipeline = PublishQueue(max_unanswered=1000)
    added: list[int] = []
    gone: list[int] = []
    answered: list[int] = []
    on_wire: list[int] = []

    def write() -> None:
        batch = [each.number for each in pipeline.next_batch().requests]
        assert batch == sorted(batch)
        assert not on_wire or not batch or on_wire[-1] < batch[0]
        on_wire.extend(batch)

    for step in steps:
        if step.startswith("add"):
            added.append(pipeline.add(request("k" if step == "add_keyed" else "")))
        elif step == "write":
            write()
        elif step == "answer" and on_wire:
            answered.append(on_wire.pop(0))
            assert pipeline.record_answer(answered[-1])
            assert not pipeline.record_answer(answered[-1])
        elif step == "lose":
            gone += pipeline.stream_lost()
            on_wire.clear()
    write()
    for number in on_wire:
        assert pipeline.record_answer(number)
    assert sorted([*answered, *gone, *on_wire]) == added
    assert len(pipeline) == 0


def test_a_publish_queue_is_bounded_in_requests_and_its_batches_in_bytes() -> None:
    pipeline = PublishQueue(max_unanswered=3)
    for _ in range(3):
        pipeline.add(request(text="x" * (MAX_BATCH_BYTES // 2)))
    assert pipeline.is_full
    with pytest.raises(IndexError):
        pipeline.add(request())
    assert [len(pipeline.next_batch().requests) for _ in range(4)] == [1, 1, 1, 0]
