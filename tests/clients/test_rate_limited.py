"""A client whose requests exceed the rate limit."""

from __future__ import annotations

import asyncio
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from trunkline.v1.address_pb2 import TopicPosition
from trunkline.v1.frame_pb2 import (
    AckFrame,
    ClientFrame,
    ConnectedFrame,
    ConnectionLimits,
    ErrorFrame,
    MessageFrame,
    ServerFrame,
    SubscribedFrame,
    SubscribeFrame,
)
from trunkline_client import builders
from trunkline_client.effects import CompleteRequest, DropConnection, Effect, PauseSending, Send
from trunkline_client.session import Session

from tests.clients.scripted_edge import ALICE, TEAM, EdgeSide, FakeTime, at, connected, message, scripted_edge


def connect(session: Session, **limits: Any) -> list[Effect]:
    """Connects a session at the beginning of the log."""
    session.disconnect()
    session.first_frames()
    positions = [TopicPosition(address=ALICE, position=at(0))]
    frame = ConnectedFrame(positions=positions, recovered=True, limits=ConnectionLimits(**limits))
    return session.receive(ServerFrame(connected=frame))


def message_frame(request_id: str) -> ClientFrame:
    """A message of the client."""
    return ClientFrame(message=MessageFrame(id=request_id, parts=builders.text("hello")))


def acked(request_id: str, seq: int) -> ServerFrame:
    """Its ack."""
    return ServerFrame(ack=AckFrame(id=request_id, message_id=f"m{seq}", position=at(seq), address=ALICE))


def rate_limited(request_id: str, retry_after_ms: int = 500) -> ServerFrame:
    """Its rejection by the rate limit."""
    error = ErrorFrame(id=request_id, code="RATE_LIMITED", retryable=True, retry_after_ms=retry_after_ms)
    return ServerFrame(error=error)


def sent(effects: list[Effect]) -> list[str]:
    return [effect.frame.message.id for effect in effects if isinstance(effect, Send)]


async def refuse(side: EdgeSide, request_id: str) -> None:
    await side.send(error=rate_limited(request_id).error)


async def test_a_rate_limited_message_is_resent_with_the_same_id_while_its_caller_waits() -> None:
    time = FakeTime()
    async with scripted_edge() as edge, connected(edge, edge.client(time)) as (client, side):
        sending = asyncio.create_task(client.send("hello", id="x"))
        first = await side.read()
        await refuse(side, "x")
        await time.wait_for_sleep(0.5)
        behind = asyncio.create_task(client.send("and", id="y"))
        time.advance(0.5)
        assert await side.read() == first
        assert (await side.read()).message.id == "y"
        await side.ack("x", 1)
        await side.ack("y", 2)
        assert ((await sending).position, (await behind).position) == (at(1), at(2))


async def test_a_pause_ends_with_its_connection() -> None:
    time = FakeTime()
    async with scripted_edge() as edge, connected(edge, edge.client(time)) as (client, side):
        sending = asyncio.create_task(client.send("hello", id="x"))
        await side.read()
        await refuse(side, "x")
        await time.wait_for_sleep(0.5)
        side.abort()
        again = await edge.accept()
        await again.read()
        await again.welcome(0, recovered=True)
        assert (await again.read()).message.id == "x"
        await again.ack("x", 1)
        await sending


def test_deferred_requests_are_sent_in_the_order_in_which_they_were_begun() -> None:
    session = Session(ALICE)
    connect(session)
    for each in "abc":
        session.request(each, message_frame(each))
    assert session.receive(rate_limited("b")) == [PauseSending(0.5)]
    assert session.request("d", message_frame("d")) == []
    session.receive(rate_limited("a"))
    session.receive(acked("c", 1))
    assert sent(session.resume_sending()) == ["a", "b", "d"]
    assert session.request("e", message_frame("e")) == [message_frame("e")]


def test_at_most_one_second_of_requests_is_sent_at_a_time() -> None:
    session = Session(ALICE)
    connect(session, messages_per_s=2)
    for each in "abcde":
        session.request(each, message_frame(each))
        session.receive(rate_limited(each))
    rounds = [session.resume_sending() for _ in range(3)]
    assert [sent(each) for each in rounds] == [["a", "b"], ["c", "d"], ["e"]]
    assert [each[-1] == PauseSending(1.0) for each in rounds] == [True, True, False]


def test_a_request_larger_than_one_second_allows_is_sent_alone() -> None:
    session = Session(ALICE)
    connect(session, bytes_per_s=message_frame("a").ByteSize() - 1)
    for each in "ab":
        session.request(each, message_frame(each))
        session.receive(rate_limited(each))
    assert [sent(session.resume_sending()) for _ in range(3)] == [["a"], ["b"], []]


def test_a_request_given_up_during_a_pause_is_not_resent() -> None:
    session = Session(ALICE)
    connect(session)
    session.request("a", message_frame("a"))
    session.receive(rate_limited("a"))
    session.give_up("a")
    assert session.resume_sending() == []
    assert session.request("b", message_frame("b")) == [message_frame("b")]


def test_a_hole_that_a_deferred_message_did_not_fill_is_a_gap() -> None:
    session = Session(ALICE)
    connect(session)
    session.request("a", message_frame("a"))
    session.receive(ServerFrame(message=message(2)))
    pause, drop = session.receive(rate_limited("a"))
    assert pause == PauseSending(0.5)
    assert isinstance(drop, DropConnection)


def test_rejoining_a_group_is_resent_before_messages_to_it() -> None:
    session = Session(ALICE)
    connect(session)
    session.request("join", ClientFrame(subscribe=SubscribeFrame(id="join", conversation=TEAM.conversation)))
    session.receive(ServerFrame(subscribed=SubscribedFrame(id="join", address=TEAM, position=at(3))))
    session.request("a", message_frame("a"))
    rejoin, again = (effect.frame for effect in connect(session) if isinstance(effect, Send))
    assert session.receive(rate_limited("a")) == [PauseSending(0.5)]
    assert session.receive(rate_limited(rejoin.subscribe.id)) == [PauseSending(0.5)]
    assert session.resume_sending() == [Send(rejoin), Send(again)]


def test_a_rate_limited_token_is_presented_again() -> None:
    session = Session(ALICE)
    connect(session)
    (presented,) = session.refresh_token("t")
    assert session.receive(rate_limited(presented.auth.id)) == [PauseSending(0.5)]
    assert session.resume_sending() == [Send(presented)]


@given(st.data())
def test_every_request_is_answered_once_whatever_is_rate_limited(data: st.DataObject) -> None:
    session = Session(ALICE)
    connect(session, messages_per_s=data.draw(st.integers(0, 3)))
    waiting: list[str] = []
    for number in range(data.draw(st.integers(1, 8))):
        waiting += [frame.message.id for frame in session.request(f"r{number}", message_frame(f"r{number}"))]
    seq, answered, refusals = 0, [], 0
    paused = False
    while waiting or paused:
        if waiting and (not paused or data.draw(st.booleans())):
            request_id = waiting.pop(0)
            if refusals < 20 and data.draw(st.booleans()):
                refusals += 1
                effects = session.receive(rate_limited(request_id))
            else:
                seq += 1
                effects = session.receive(acked(request_id, seq))
                answered += [effect.id for effect in effects if isinstance(effect, CompleteRequest)]
            paused = paused or any(isinstance(effect, PauseSending) for effect in effects)
        else:
            effects = session.resume_sending()
            waiting += sent(effects)
            paused = any(isinstance(effect, PauseSending) for effect in effects)
    assert sorted(answered) == sorted(set(answered))
    assert len(answered) == seq
    assert not session.resume_sending()
