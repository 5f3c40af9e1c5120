"""Open messages, changes and receipts as a client sends and receives them."""

from __future__ import annotations

import asyncio

import pytest
from trunkline.v1.frame_pb2 import (
    CancelledFrame,
    CancelledReply,
    DeliveredFrame,
    DeltaFrame,
    ErrorFrame,
    ReadFrame,
)
from trunkline.v1.message_pb2 import (
    CHANGE_KIND_EDITED,
    CHANGE_KIND_RECALLED,
    MESSAGE_STATE_CANCELLED,
    MESSAGE_STATE_RECALLED,
    Message,
)
from trunkline_client import ClientSettings, Closed, Refused, text_of

from tests.clients.log_entries import begun, ended, summary
from tests.clients.scripted_edge import (
    ALICE,
    TEAM,
    FakeTime,
    at,
    connected,
    eventually,
    message,
    scripted_edge,
)


async def test_an_open_message_is_received_as_it_grows_and_ends() -> None:
    async with scripted_edge() as edge, connected(edge, edge.client()) as (client, side):
        await side.send(message=begun(1, "Once"))
        await side.send(delta=DeltaFrame(text=" upon"))
        await side.send(message=message(2, "aside"))
        await side.send(delta=DeltaFrame(message_id="m1", index=1, text=" a time"))
        await side.send(delta=DeltaFrame(message_id="unheard", text="of"))
        await side.send(change=ended(3, "m1"))
        events = client.events()
        first = await anext(events)
        assert isinstance(first, Message)
        assert summary(first) == ("message", "Once")
        assert [summary(await anext(events)) for _ in range(4)] == [
            " upon",
            ("message", "aside"),
            " a time",
            ("changed", "Once upon a time"),
        ]
        assert text_of(first) == "Once", "a yielded message does not change"
        assert [each.position for each in client.positions] == [at(3)]


async def test_iteration_yields_an_open_message_once_and_skips_its_deltas() -> None:
    async with scripted_edge() as edge, connected(edge, edge.client()) as (client, side):
        await side.send(message=begun(1))
        await side.send(delta=DeltaFrame(text="a"))
        await side.send(message=begun(1, "a"))
        await side.send(change=ended(2, "m1"))
        await side.send(message=message(3))
        heard = aiter(client)
        assert [(await anext(heard)).id for _ in range(2)] == ["m1", "m3"]


async def test_changes_and_reads_are_entries_of_the_log() -> None:
    async with scripted_edge() as edge, connected(edge, edge.client()) as (client, side):
        await side.send(message=message(1))
        edited = ended(2, "m1", kind=CHANGE_KIND_EDITED, message=message(1, "better"))
        for _ in range(2):
            await side.send(change=edited)
        read = ReadFrame(position=at(1), user="bob", at=at(3), address=ALICE)
        for _ in range(2):
            await side.send(read=read)
        await side.send(change=ended(4, "m1", MESSAGE_STATE_RECALLED, kind=CHANGE_KIND_RECALLED))
        events = client.events()
        assert [summary(await anext(events)) for _ in range(4)] == [
            ("message", "text 1"),
            ("changed", "better"),
            read,
            ("changed", None),
        ]
        assert [each.position for each in client.positions] == [at(4)]
        await side.send(change=ended(6, "m1"))
        again = await edge.accept()
        assert (await again.read()).resume.positions[0].position == at(4), (
            "a gap is noticed after unlogged frames too"
        )


async def test_the_ack_of_an_edit_fills_its_position() -> None:
    async with scripted_edge() as edge, connected(edge, edge.client()) as (client, side):
        editing = asyncio.create_task(client.edit("m0", "better"))
        frame = (await side.read()).edit
        assert (frame.message_id, frame.parts[0].text.text) == ("m0", "better")
        await side.send(message=message(2))
        await side.ack(frame.id, 1)
        assert (await editing).position == at(1)
        recalling = asyncio.create_task(client.recall("m0"))
        recall_id = (await side.read()).recall.id
        await side.send(error=ErrorFrame(id=recall_id, code="NOT_THE_AUTHOR", message="no"))
        with pytest.raises(Refused, match="NOT_THE_AUTHOR"):
            await recalling
        await side.send(message=message(3))
        heard = aiter(client)
        assert [(await anext(heard)).id for _ in range(2)] == ["m2", "m3"]


async def test_a_read_position_is_resent_until_it_is_confirmed() -> None:
    async with scripted_edge() as edge, connected(edge, edge.client()) as (client, side):
        await client.mark_read(at(3))
        await client.mark_read(at(2))
        await client.mark_read(at(7), conversation="group:team")
        assert [(await side.read()).read.position.seq for _ in range(3)] == [3, 2, 7]
        back = ReadFrame(position=at(7), user="alice", at=at(8), address=TEAM)
        await side.send(read=back)
        assert await anext(client.events()) == back
        side.abort()
        again = await edge.accept()
        await again.read()
        await again.welcome(0, recovered=True)
        assert (await again.read()).read.position.seq == 3
        await again.send(read=ReadFrame(position=at(3), user="alice"))
        await anext(client.events())
        assert not list(client._runtime.session._reads), "a confirmation without an entry counts"
    with pytest.raises(Closed):
        await client.mark_read(at(1))


async def test_delivery_receipts_are_sent_and_received() -> None:
    async with scripted_edge() as edge, connected(edge, edge.client()) as (client, side):
        await client.mark_delivered(at(3), conversation="group:team")
        frame = (await side.read()).delivered
        assert (frame.position, frame.conversation.id) == (at(3), "team")
        receipt = DeliveredFrame(position=at(3), user="bob", address=ALICE)
        await side.send(delivered=receipt)
        assert await anext(client.events()) == receipt


async def test_a_cancel_returns_its_effect() -> None:
    async with scripted_edge() as edge, connected(edge, edge.client()) as (client, side):
        cancelling = asyncio.create_task(client.cancel(client_id="x", conversation="group:team"))
        frame = (await side.read()).cancel
        assert (frame.client_id, frame.conversation.id) == ("x", "team")
        replies = [CancelledReply(message_id="m1", state=MESSAGE_STATE_CANCELLED)]
        await side.send(cancelled=CancelledFrame(id=frame.id, replies=replies))
        assert await cancelling == ({"m1": MESSAGE_STATE_CANCELLED}, False)
        with pytest.raises(ValueError, match="a cancel names"):
            await client.cancel()


async def test_the_rollup_window_is_requested_from_the_edge() -> None:
    settings = ClientSettings(rollup_ms=0)
    async with scripted_edge() as edge, connected(edge, edge.client(settings=settings)) as (_, side):
        assert side.query["rollup_ms"] == "0"


async def test_a_late_joiner_gets_an_open_message_and_its_deltas() -> None:
    time = FakeTime()
    async with scripted_edge() as edge, connected(edge, edge.client(time), seq=5) as (client, side):
        await side.send(message=begun(4, "so far"))
        await side.send(delta=DeltaFrame(text=", so good"))
        assert text_of(await anext(aiter(client))) == "so far"
        await eventually(lambda: client._runtime.inbox)
        assert [each.position for each in client.positions] == [at(5)]
