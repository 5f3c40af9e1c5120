"""A client on one connection."""

from __future__ import annotations

import asyncio
from http import HTTPStatus

import pytest
from trunkline.v1.address_pb2 import Position
from trunkline.v1.frame_pb2 import (
    SIGNAL_END_STOPPED,
    ClosingFrame,
    ErrorFrame,
    HistoryPageFrame,
    PongFrame,
    ReadFrame,
    SignalFrame,
    SubscribedFrame,
    UnsubscribedFrame,
)
from trunkline.v1.message_pb2 import WITHOUT_WORKER_SKIP
from trunkline_client import ClientSettings, Closed, OutcomeUnknown, Refused, TimedOut, Unreachable, text_of
from websockets.asyncio.server import ServerConnection
from websockets.http11 import Request, Response

from tests.clients.scripted_edge import ALICE, TEAM, FakeTime, at, connected, message, scripted_edge


async def test_client_names_its_address_in_the_query_and_speaks_binary_frames() -> None:
    async with scripted_edge() as edge, connected(edge, edge.client(token="a.b.c")) as (client, side):
        assert side.path.startswith("/v1/connect?")
        assert side.query == {
            "tenant": "demo",
            "agent": "echo",
            "platform": "web",
            "conversation": "person:alice",
            "user": "alice",
        }
        assert side.token == "a.b.c"
        assert side.socket.subprotocol == "trunkline.v1.proto"
        assert (client.state, client.connection_id, client.recovered) == ("connected", "c1", False)


async def test_send_returns_the_ack() -> None:
    async with scripted_edge() as edge, connected(edge, edge.client()) as (client, side):
        sending = asyncio.create_task(client.send("hello", id="x", attributes={"k": "v"}, reply_to="m0"))
        frame = (await side.read()).message
        assert (frame.id, frame.reply_to, dict(frame.attributes)) == ("x", "m0", {"k": "v"})
        assert [part.text.text for part in frame.parts] == ["hello"]
        await side.ack("x", 1)
        ack = await sending
        assert (ack.message_id, ack.position, ack.address) == ("m1", at(1), ALICE)


async def test_a_rejected_message_raises_refused_and_the_connection_stays() -> None:
    async with scripted_edge() as edge, connected(edge, edge.client()) as (client, side):
        sending = asyncio.create_task(client.send("hello", id="x"))
        await side.read()
        error = ErrorFrame(id="x", code="OVERLOADED", message="Too much", retryable=True, retry_after_ms=7)
        await side.send(error=error)
        with pytest.raises(Refused, match="Too much") as refused:
            await sending
        assert (refused.value.code, refused.value.retryable, refused.value.retry_after_ms) == (
            "OVERLOADED",
            True,
            7,
        )
        assert client.state == "connected"


async def test_a_message_chooses_its_delivery_without_a_worker() -> None:
    async with scripted_edge() as edge, connected(edge, edge.client()) as (client, side):
        with pytest.raises(ValueError, match="expire, keep or skip"):
            await client.send("hello", without_worker="never")  # type: ignore[arg-type]
        with pytest.raises(TimedOut):
            await client.send("hello", without_worker="skip", timeout_s=0.01)
        assert (await side.read()).message.without_worker == WITHOUT_WORKER_SKIP


async def test_a_message_without_an_answer_times_out() -> None:
    async with scripted_edge() as edge, connected(edge, edge.client()) as (client, _):
        with pytest.raises(TimedOut):
            await client.send("hello", timeout_s=0.01)


async def test_a_frame_over_the_limit_of_the_edge_is_rejected_by_the_client() -> None:
    async with scripted_edge() as edge, connected(edge, edge.client()) as (client, _):
        with pytest.raises(Refused) as refused:
            await client.send("x" * (1 << 20))
        assert refused.value.code == "FRAME_TOO_LARGE"


async def test_messages_are_yielded_in_order_and_positions_follow_the_application() -> None:
    async with scripted_edge() as edge, connected(edge, edge.client()) as (client, side):
        for seq in (1, 2, 3):
            await side.send(message=message(seq))
        heard = aiter(client)
        assert [text_of(await anext(heard)) for _ in range(2)] == ["text 1", "text 2"]
        assert [each.position for each in client.positions] == [at(2)]


async def test_a_repeated_message_is_yielded_once() -> None:
    async with scripted_edge() as edge, connected(edge, edge.client()) as (client, side):
        for seq in (1, 1, 2):
            await side.send(message=message(seq))
        heard = aiter(client)
        assert [(await anext(heard)).position.seq for _ in range(2)] == [1, 2]


async def test_signals_and_reads_are_events_and_not_messages() -> None:
    async with scripted_edge() as edge, connected(edge, edge.client()) as (client, side):
        await side.send(signal=SignalFrame(name="typing", user="bob"))
        await side.send(read=ReadFrame(position=at(4), user="bob"))
        events = client.events()
        assert await anext(events) == SignalFrame(name="typing", user="bob")
        assert await anext(events) == ReadFrame(position=at(4), user="bob")
        await side.send(signal=SignalFrame(name="typing", user="bob"))
        await side.send(message=message(1))
        assert (await anext(aiter(client))).id == "m1"


async def test_signals_and_reads_are_sent_without_waiting_for_an_answer() -> None:
    async with scripted_edge() as edge, connected(edge, edge.client()) as (client, side):
        await client.signal("typing", {"on": True}, conversation="group:team")
        await client.mark_read(Position(epoch="e1", seq=3))
        signal = (await side.read()).signal
        assert (signal.name, signal.data["on"], signal.conversation.id) == ("typing", True, "team")
        assert (await side.read()).read.position.seq == 3


async def test_groups_are_joined_and_left() -> None:
    async with scripted_edge() as edge, connected(edge, edge.client()) as (client, side):
        joining = asyncio.create_task(client.subscribe("team"))
        frame = (await side.read()).subscribe
        assert frame.conversation.id == "team"
        await side.send(subscribed=SubscribedFrame(id=frame.id, address=TEAM, position=at(5)))
        assert (await joining).position == at(5)
        await side.send(message=message(6, to=TEAM))
        await anext(aiter(client))
        assert {each.position.seq for each in client.positions} == {0, 6}
        leaving = asyncio.create_task(client.unsubscribe("group:team"))
        frame_id = (await side.read()).unsubscribe.id
        await side.send(unsubscribed=UnsubscribedFrame(id=frame_id, address=TEAM))
        await leaving
        assert {each.position.seq for each in client.positions} == {0}


async def test_history_and_ping_are_answered() -> None:
    time = FakeTime()
    async with scripted_edge() as edge, connected(edge, edge.client(time)) as (client, side):
        reading = asyncio.create_task(client.read_history(after=at(2), limit=10))
        frame = (await side.read()).history
        assert (frame.after.seq, frame.limit) == (2, 10)
        await side.send(history=HistoryPageFrame(id=frame.id, messages=[message(3)], more=True))
        page = await reading
        assert ([each.id for each in page.messages], page.more) == (["m3"], True)
        pinging = asyncio.create_task(client.ping())
        frame_id = (await side.read()).ping.id
        time.advance(0.5)
        await side.send(pong=PongFrame(id=frame_id))
        assert await pinging == 0.5


async def test_reading_stops_while_the_inbox_is_full() -> None:
    settings = ClientSettings(inbox_max_items=2)
    async with scripted_edge() as edge, connected(edge, edge.client(settings=settings)) as (client, side):
        for seq in range(1, 50):
            await side.send(message=message(seq))
        heard = aiter(client)
        for seq in range(1, 50):
            assert (await anext(heard)).position.seq == seq
            assert len(client._runtime.inbox) <= 2


async def test_closing_ends_iteration_fails_pending_requests_and_leaves_no_task() -> None:
    before = asyncio.all_tasks()
    async with scripted_edge() as edge, connected(edge, edge.client()) as (client, side):
        sending = asyncio.create_task(client.send("hello"))
        await side.read()
        await side.send(message=message(1))
        closing = asyncio.create_task(client.close())
        assert (await side.read()).HasField("disconnect")
        await side.send(closing=ClosingFrame(code=1000, reason="DISCONNECTED"))
        await side.close(1000)
        await closing
        with pytest.raises(OutcomeUnknown) as unknown:
            await sending
        assert isinstance(unknown.value.__cause__, Closed)
        assert [each.id async for each in client] == ["m1"]
        assert client.state == "closed"
        with pytest.raises(Closed):
            await client.signal("typing")
    assert asyncio.all_tasks() == before


async def test_cancelling_the_body_leaves_no_task() -> None:
    before = asyncio.all_tasks()
    async with scripted_edge() as edge:

        async def body() -> None:
            async with edge.client(settings=ClientSettings(close_timeout_s=0.01)) as client:
                async for _ in client:
                    pass

        running = asyncio.create_task(body())
        side = await edge.accept()
        await side.welcome()
        await side.send(message=message(1))
        running.cancel()
        await asyncio.wait({running})
        assert running.cancelled()
    assert asyncio.all_tasks() == before


async def test_a_cancelled_iteration_loses_nothing() -> None:
    async with scripted_edge() as edge, connected(edge, edge.client()) as (client, side):
        waiting = asyncio.ensure_future(anext(aiter(client)))
        await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.wait({waiting})
        await side.send(message=message(1))
        assert (await anext(aiter(client))).id == "m1"


async def test_an_absent_edge_is_unreachable() -> None:
    async with scripted_edge() as edge:
        url = edge.url
    client = edge.client(url=url, settings=ClientSettings(open_timeout_s=0))
    with pytest.raises(Unreachable, match="Cannot reach ws://127"):
        await client.open()


@pytest.mark.parametrize("body", ["", "<html>", "[]", '{"details": 1}', '{"details": [1, {"@type": 2}]}'])
async def test_an_http_error_of_another_server_is_raised_with_its_status(body: str) -> None:
    def refuse(socket: ServerConnection, request: Request) -> Response:
        return socket.respond(HTTPStatus.FORBIDDEN, body)

    async with scripted_edge(process_request=refuse) as edge:
        with pytest.raises(Refused, match="the edge answered 403 Forbidden") as refused:
            await edge.client().open()
        assert (refused.value.code, refused.value.retryable) == ("HTTP_403", False)


async def test_a_close_code_that_is_final_is_raised_from_open() -> None:
    async with scripted_edge() as edge:
        opening = asyncio.create_task(edge.client().open())
        side = await edge.accept()
        await side.send(
            closing=ClosingFrame(code=4504, reason="UNKNOWN_TENANT", message="Tenant demo does not exist")
        )
        await side.close(4504)
        with pytest.raises(Closed, match="Tenant demo does not exist") as closed:
            await opening
        assert (closed.value.code, closed.value.reason) == (4504, "UNKNOWN_TENANT")


async def test_a_signal_has_a_time_to_live_and_is_ended() -> None:
    async with scripted_edge() as edge, connected(edge, edge.client()) as (client, side):
        await client.signal("typing", ttl_s=2.5)
        assert (await side.read()).signal == SignalFrame(name="typing", ttl_ms=2500)
        await client.end_signal("typing", conversation="group:team")
        signal = (await side.read()).signal
        assert (signal.name, signal.end, signal.conversation.id) == ("typing", SIGNAL_END_STOPPED, "team")
        for ttl_s in (0, -1, 300.1, float("nan")):
            with pytest.raises(ValueError, match="ttl_s"):
                await client.signal("typing", ttl_s=ttl_s)


async def test_a_signal_is_unreachable_while_disconnected() -> None:
    time = FakeTime()
    async with scripted_edge() as edge, connected(edge, edge.client(time)) as (client, side):
        side.abort()
        await edge.accept()
        with pytest.raises(Unreachable):
            await client.signal("typing")


@pytest.mark.parametrize("url", ["http://x", "ws:", "localhost:8080"])
async def test_a_url_without_ws_scheme_or_host_raises_value_error(url: str) -> None:
    async with scripted_edge() as edge:
        with pytest.raises(ValueError, match="begins with ws://"):
            edge.client(url=url)
