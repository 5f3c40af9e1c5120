"""A client across connections."""

from __future__ import annotations

import asyncio

import pytest
from trunkline.v1.address_pb2 import TopicPosition
from trunkline.v1.frame_pb2 import ClosingFrame, ErrorFrame, SubscribedFrame
from trunkline.v1.message_pb2 import ROLE_USER, Author
from trunkline_client import Closed, GroupLeft, MessagesLost, OutcomeUnknown
from trunkline_client.backoff import Backoff

from tests.clients.scripted_edge import ALICE, TEAM, FakeTime, at, connected, message, scripted_edge


async def test_an_unanswered_message_is_resent_with_the_same_id_after_resuming() -> None:
    async with scripted_edge() as edge, connected(edge, edge.client()) as (client, side):
        await side.send(message=message(1))
        await anext(aiter(client))
        sending = asyncio.create_task(client.send("hello", id="x"))
        first = await side.read()
        side.abort()
        again = await edge.accept()
        assert again.query["resume"] == "frame"
        resume = (await again.read()).resume
        assert list(resume.positions) == [TopicPosition(address=ALICE, position=at(1))]
        await again.welcome(1, recovered=True)
        assert await again.read() == first
        await again.ack("x", 2)
        assert (await sending).position == at(2)
        assert client.recovered


async def test_our_own_message_in_a_replay_is_its_ack_and_is_not_yielded() -> None:
    async with scripted_edge() as edge, connected(edge, edge.client()) as (client, side):
        sending = asyncio.create_task(client.send("hello", id="x"))
        await side.read()
        side.abort()
        again = await edge.accept()
        await again.read()
        await again.welcome(0, recovered=True)
        await again.send(message=message(1, client_id="x", author=Author(role=ROLE_USER, user="alice")))
        await again.send(message=message(2))
        assert (await sending).message_id == "m1"
        assert (await anext(aiter(client))).id == "m2"
        assert (await again.read()).message.id == "x"
        await again.ack("x", 1)
        await again.send(message=message(3))
        assert (await anext(aiter(client))).id == "m3"


async def test_groups_are_rejoined_at_their_positions_before_anything_is_resent() -> None:
    async with scripted_edge() as edge, connected(edge, edge.client()) as (client, side):
        joining = asyncio.create_task(client.subscribe("team"))
        frame = (await side.read()).subscribe
        await side.send(subscribed=SubscribedFrame(id=frame.id, address=TEAM, position=at(5)))
        await joining
        sending = asyncio.create_task(client.send("hello", id="x", conversation="group:team"))
        await side.read()
        side.abort()
        again = await edge.accept()
        resume = (await again.read()).resume
        assert [each.address for each in resume.positions] == [ALICE]
        await again.welcome(0, recovered=True)
        rejoin = (await again.read()).subscribe
        assert (rejoin.conversation.id, rejoin.position) == ("team", at(5))
        assert (await again.read()).message.id == "x"
        await again.send(
            subscribed=SubscribedFrame(id=rejoin.id, address=TEAM, position=at(5), recovered=True)
        )
        await again.send(message=message(6, to=TEAM))
        assert (await anext(aiter(client))).position.seq == 6
        sending.cancel()


async def test_a_group_that_cannot_be_rejoined_is_reported() -> None:
    async with scripted_edge() as edge, connected(edge, edge.client()) as (client, side):
        joining = asyncio.create_task(client.subscribe("team"))
        frame = (await side.read()).subscribe
        await side.send(subscribed=SubscribedFrame(id=frame.id, address=TEAM, position=at(5)))
        await joining
        side.abort()
        again = await edge.accept()
        await again.read()
        await again.welcome(0, recovered=True)
        rejoin = (await again.read()).subscribe
        await again.send(error=ErrorFrame(id=rejoin.id, code="CONVERSATION_FORBIDDEN", message="no"))
        left = await anext(client.events())
        assert left == GroupLeft(TEAM, "CONVERSATION_FORBIDDEN", "no")
        assert [each.address for each in client.positions] == [ALICE]


async def test_a_loss_is_reported_before_the_events_that_follow_it() -> None:
    losses: list[MessagesLost] = []
    async with (
        scripted_edge() as edge,
        connected(edge, edge.client(on_lost=losses.append), seq=3) as (client, side),
    ):
        side.abort()
        again = await edge.accept()
        await again.read()
        await again.welcome(9, recovered=False)
        await again.send(message=message(10))
        events = client.events()
        lost = await anext(events)
        assert lost == MessagesLost((TopicPosition(address=ALICE, position=at(9)),))
        assert losses == [lost]
        assert await anext(events) == message(10)
        assert not client.recovered


async def test_a_client_resumes_from_the_positions_of_an_earlier_one() -> None:
    resume = [
        TopicPosition(address=ALICE, position=at(4)),
        TopicPosition(address=TEAM, position=at(7)),
    ]
    async with scripted_edge() as edge:
        client = edge.client(resume=resume)
        opening = asyncio.create_task(client.open())
        side = await edge.accept()
        assert [each.position for each in (await side.read()).resume.positions] == [at(4)]
        await side.welcome(4, recovered=True)
        await opening
        joining = asyncio.create_task(client.subscribe("team"))
        assert (await side.read()).subscribe.position == at(7)
        joining.cancel()
        edge.end()
        await client.close()


async def test_a_gap_makes_the_client_resume_from_before_it() -> None:
    async with scripted_edge() as edge, connected(edge, edge.client()) as (client, side):
        await side.send(message=message(1))
        await side.send(message=message(3))
        again = await edge.accept()
        assert (await again.read()).resume.positions[0].position == at(1)
        await again.welcome(1, recovered=True)
        for seq in (2, 3):
            await again.send(message=message(seq))
        heard = aiter(client)
        assert [(await anext(heard)).position.seq for _ in range(3)] == [1, 2, 3]


@pytest.mark.parametrize("code", [1001, 1011, 1012, 1013, 4000, 4003, 4005, 4499])
async def test_the_client_reconnects_after_a_temporary_close(code: int) -> None:
    async with scripted_edge() as edge, connected(edge, edge.client()) as (client, side):
        await side.close(code)
        again = await edge.accept()
        await again.read()
        await again.welcome(0, recovered=True)
        await again.send(message=message(1))
        assert (await anext(aiter(client))).id == "m1"


async def test_the_client_waits_for_as_long_as_the_edge_asks() -> None:
    time = FakeTime()
    async with scripted_edge() as edge, connected(edge, edge.client(time)) as (client, side):
        await side.send(closing=ClosingFrame(code=1012, reason="RESTARTING", reconnect_after_ms=500))
        await side.close(1012)
        await time.wait_for_sleep(0.5)
        assert client.state == "waiting"
        time.advance(0.5)
        await edge.accept()


@pytest.mark.parametrize("code", [1009, 4500, 4501, 4999])
async def test_a_final_close_ends_the_client(code: int) -> None:
    async with scripted_edge() as edge, connected(edge, edge.client()) as (client, side):
        sending = asyncio.create_task(client.send("hello"))
        await side.read()
        await side.send(message=message(1))
        await side.send(closing=ClosingFrame(code=code, reason="CLOSED_BY_BACKEND", message="Go away"))
        await side.close(code)
        with pytest.raises(OutcomeUnknown, match="Go away") as unknown:
            await sending
        assert isinstance(unknown.value.__cause__, Closed)
        heard = aiter(client)
        assert (await anext(heard)).id == "m1"
        with pytest.raises(Closed) as closed:
            await anext(heard)
        assert closed.value.code == code


async def beat(time: FakeTime) -> None:
    """Advances time by one heartbeat interval."""
    until = time.now + 20
    while time.now < until:
        time.advance(await time.wait_for_sleeper())


async def test_a_silent_connection_is_pinged_and_then_dropped() -> None:
    time = FakeTime()
    async with scripted_edge() as edge, connected(edge, edge.client(time)) as (_, side):
        await beat(time)
        assert (await side.read()).HasField("ping")
        await beat(time)
        await edge.accept()


async def test_anything_received_keeps_the_connection() -> None:
    time = FakeTime()
    async with scripted_edge() as edge, connected(edge, edge.client(time)) as (client, side):
        for _ in range(4):
            await beat(time)
            assert (await side.read()).HasField("ping")
            await (await side.socket.ping())
        assert client.state == "connected"


async def test_an_undecodable_frame_makes_the_client_reconnect() -> None:
    async with scripted_edge() as edge, connected(edge, edge.client()) as (_, side):
        await side.socket.send(b"\xff\xff\xff")
        await edge.accept()


def test_waits_grow_and_are_jittered() -> None:
    most = Backoff(lambda: 1.0)
    assert [most.next_s() for _ in range(8)] == [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0]
    least = Backoff(lambda: 0.0)
    assert [least.next_s(0.5), least.next_s()] == [0.5, 0.0]
    most.record_uptime(4.9)
    assert most.next_s() == 5.0
    most.record_uptime(5.0)
    assert most.next_s() == 0.1
    most.record_uptime(0.9)
    assert most.next_s() == 0.2
