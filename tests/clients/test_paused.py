"""What a client does when it is told that it sends too fast."""

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
    """A new connection, welcomed at the beginning of the log."""
    session.disconnect()
    session.first_frames()
    positions = [TopicPosition(address=ALICE, position=at(0))]
    frame = ConnectedFrame(positions=positions, recovered=True, limits=ConnectionLimits(**limits))
    return session.receive(ServerFrame(connected=frame))


def said(request_id: str) -> ClientFrame:
    """A message of ours."""
    return ClientFrame(message=MessageFrame(id=request_id, parts=builders.text("hello")))


def acked(request_id: str, seq: int) -> ServerFrame:
    """Its ack."""
    return ServerFrame(ack=AckFrame(id=request_id, message_id=f"m{seq}", position=at(seq), address=ALICE))


def too_fast(request_id: str, retry_after_ms: int = 500) -> ServerFrame:
    """It was refused as too much was sent."""
    error = ErrorFrame(id=request_id, code="RATE_LIMITED", retryable=True, retry_after_ms=retry_after_ms)
    return ServerFrame(error=error)


def sent(effects: list[Effect]) -> list[str]:
    return [effect.frame.message.id for effect in effects if isinstance(effect, Send)]


async def refuse(side: EdgeSide, request_id: str) -> None:
    await side.say(error=too_fast(request_id).error)


async def test_what_was_too_much_is_sent_again_with_the_same_id_and_its_caller_waits() -> None:
    time = FakeTime()
    async with scripted_edge() as edge, connected(edge, edge.client(time)) as (client, side):
        sending = asyncio.create_task(client.send("hello", id="x"))
        first = await side.read()
        await refuse(side, "x")
        await time.asleep_for(0.5)
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
        await time.asleep_for(0.5)
        side.break_off()
        again = await edge.accepted()
        await again.read()
        await again.welcome(0, recovered=True)
        assert (await again.read()).message.id == "x"
        await again.ack("x", 1)
        await sending


def test_what_was_refused_and_what_was_begun_since_goes_in_the_order_in_which_it_was_begun() -> None:
    session = Session(ALICE)
    connect(session)
    for each in "abc":
        session.request(each, said(each))
    assert session.receive(too_fast("b")) == [PauseSending(0.5)]
    assert session.request("d", said("d")) == []
    session.receive(too_fast("a"))
    session.receive(acked("c", 1))
    assert sent(session.resume_sending()) == ["a", "b", "d"]
    assert session.request("e", said("e")) == [said("e")]


def test_no_more_is_sent_at_a_time_than_the_edge_takes_in_a_second() -> None:
    session = Session(ALICE)
    connect(session, messages_per_s=2)
    for each in "abcde":
        session.request(each, said(each))
        session.receive(too_fast(each))
    rounds = [session.resume_sending() for _ in range(3)]
    assert [sent(each) for each in rounds] == [["a", "b"], ["c", "d"], ["e"]]
    assert [each[-1] == PauseSending(1.0) for each in rounds] == [True, True, False]


def test_what_is_larger_than_a_second_takes_goes_alone() -> None:
    session = Session(ALICE)
    connect(session, bytes_per_s=said("a").ByteSize() - 1)
    for each in "ab":
        session.request(each, said(each))
        session.receive(too_fast(each))
    assert [sent(session.resume_sending()) for _ in range(3)] == [["a"], ["b"], []]


def test_what_was_given_up_in_a_pause_is_not_sent_again() -> None:
    session = Session(ALICE)
    connect(session)
    session.request("a", said("a"))
    session.receive(too_fast("a"))
    session.give_up("a")
    assert session.resume_sending() == []
    assert session.request("b", said("b")) == [said("b")]


def test_a_hole_that_a_refused_message_did_not_fill_is_a_gap() -> None:
    session = Session(ALICE)
    connect(session)
    session.request("a", said("a"))
    session.receive(ServerFrame(message=message(2)))
    pause, drop = session.receive(too_fast("a"))
    assert pause == PauseSending(0.5)
    assert isinstance(drop, DropConnection)


def test_joining_a_group_again_is_asked_again_before_what_is_said_in_it() -> None:
    session = Session(ALICE)
    connect(session)
    session.request("join", ClientFrame(subscribe=SubscribeFrame(id="join", conversation=TEAM.conversation)))
    session.receive(ServerFrame(subscribed=SubscribedFrame(id="join", address=TEAM, position=at(3))))
    session.request("a", said("a"))
    rejoin, again = (effect.frame for effect in connect(session) if isinstance(effect, Send))
    assert session.receive(too_fast("a")) == [PauseSending(0.5)]
    assert session.receive(too_fast(rejoin.subscribe.id)) == [PauseSending(0.5)]
    assert session.resume_sending() == [Send(rejoin), Send(again)]


def test_a_token_that_was_shown_too_fast_is_shown_again() -> None:
    session = Session(ALICE)
    connect(session)
    (shown,) = session.refresh_token("t")
    assert session.receive(too_fast(shown.auth.id)) == [PauseSending(0.5)]
    assert session.resume_sending() == [Send(shown)]


@given(st.data())
def test_whatever_is_refused_every_request_is_answered_once(data: st.DataObject) -> None:
    session = Session(ALICE)
    connect(session, messages_per_s=data.draw(st.integers(0, 3)))
    waiting: list[str] = []
    for number in range(data.draw(st.integers(1, 8))):
        waiting += [frame.message.id for frame in session.request(f"r{number}", said(f"r{number}"))]
    seq, answered, refusals = 0, [], 0
    paused = False
    while waiting or paused:
        if waiting and (not paused or data.draw(st.booleans())):
            request_id = waiting.pop(0)
            if refusals < 20 and data.draw(st.booleans()):
                refusals += 1
                effects = session.receive(too_fast(request_id))
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
