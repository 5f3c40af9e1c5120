"""Open messages, changes and streamed replies as a client receives them."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from trunkline.v1.error_pb2 import Error
from trunkline.v1.frame_pb2 import (
    CancelledFrame,
    CancelledReply,
    DeliveredFrame,
    DeltaFrame,
    ErrorFrame,
    HistoryPageFrame,
    ReadFrame,
)
from trunkline.v1.message_pb2 import (
    CHANGE_KIND_EDITED,
    CHANGE_KIND_ENDED,
    CHANGE_KIND_RECALLED,
    MESSAGE_STATE_CANCELLED,
    MESSAGE_STATE_COMPLETE,
    MESSAGE_STATE_FAILED,
    MESSAGE_STATE_OPEN,
    MESSAGE_STATE_RECALLED,
    MESSAGE_STATE_UNSPECIFIED,
    Change,
    Message,
)
from trunkline_client import (
    ClientSettings,
    Closed,
    Delta,
    Event,
    MessageChanged,
    MessagesLost,
    Refused,
    ReplyStream,
    Snapshot,
    TimedOut,
    text_of,
)

from tests.clients.scripted_edge import (
    ALICE,
    TEAM,
    FakeTime,
    ScriptedEdge,
    at,
    connected,
    eventually,
    message,
    scripted_edge,
)


def begun(seq: int, text: str = "", **more: Any) -> Message:
    """An open message."""
    made = message(seq, "x", state=MESSAGE_STATE_OPEN, **more)
    del made.parts[:]
    if text:
        made.parts.add().text.text = text
    return made


def ended(seq: int, message_id: str, state: Any = MESSAGE_STATE_COMPLETE, **more: Any) -> Change:
    """The log entry that ends a message."""
    return Change(
        position=at(seq),
        address=ALICE,
        message_id=message_id,
        kind=more.pop("kind", CHANGE_KIND_ENDED),
        state=state,
        **more,
    )


def summary(event: Event) -> Any:
    """A short form of an event."""
    match event:
        case Message():
            return ("message", text_of(event))
        case Delta():
            return event.text or event.reasoning or event.part
        case Snapshot(whole):
            return ("snapshot", text_of(whole))
        case MessageChanged():
            return ("changed", None if event.message is None else text_of(event.message))
        case _:
            return event


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


# Questions.


async def asked(edge: ScriptedEdge, side: Any, seq: int = 1) -> None:
    """Reads a question and acknowledges it."""
    await side.ack((await side.read()).message.id, seq)


async def rest(reply: ReplyStream) -> list[Any]:
    """The remaining items of a reply."""
    return [summary(each) async for each in reply]


async def test_a_streamed_reply_is_followed_to_its_end() -> None:
    async with scripted_edge() as edge, connected(edge, edge.client()) as (client, side):
        answering = asyncio.create_task(asked(edge, side))
        async with client.ask("a story?") as reply:
            await answering
            assert (reply.message, reply.text, reply.state) == (None, "", MESSAGE_STATE_UNSPECIFIED)
            await side.send(message=begun(2, reply_to="m1"))
            await side.send(delta=DeltaFrame(text="Once "))
            assert summary(await anext(reply)) == "Once "
            assert (reply.text, reply.state) == ("Once ", MESSAGE_STATE_OPEN)
            await side.send(delta=DeltaFrame(text="upon "))
            await side.send(delta=DeltaFrame(text="a time"))
            await side.send(change=ended(3, "m2"))
            await side.send(message=message(4, "a second one", reply_to="m1"))
            assert text_of(await reply.wait_until_ended()) == "Once upon a time"
            assert await rest(reply) == ["upon a time"], "deltas that arrived together are joined"
            assert (reply.state, reply.error) == (MESSAGE_STATE_COMPLETE, None)
        assert (await anext(aiter(client))).id == "m4", "only the followed message is left out"


async def test_a_reply_that_is_not_streamed_is_followed_too() -> None:
    async with scripted_edge() as edge, connected(edge, edge.client()) as (client, side):
        answering = asyncio.create_task(asked(edge, side))
        async with client.ask("hello?") as reply:
            await answering
            await side.send(message=message(2, "hello!", reply_to="m1", state=MESSAGE_STATE_COMPLETE))
            assert await rest(reply) == ["hello!"]
            assert reply.state == MESSAGE_STATE_COMPLETE


async def test_a_reply_may_be_faster_than_the_ack() -> None:
    async with scripted_edge() as edge, connected(edge, edge.client()) as (client, side):

        async def answer() -> None:
            text = (await side.read()).message
            await side.send(message=begun(2, "An", reply_to="m1"))
            await side.send(delta=DeltaFrame(text="swer"))
            await side.send(message=message(3, "to something else", reply_to="m0"))
            await side.ack(text.id, 1)
            await side.send(change=ended(4, "m2"))

        answering = asyncio.create_task(answer())
        async with client.ask("quick?") as reply:
            assert await rest(reply) == ["Answer"]
        await answering
        assert (await anext(aiter(client))).id == "m3"


async def test_an_unanswered_question_holds_nothing_back() -> None:
    async with scripted_edge() as edge, connected(edge, edge.client()) as (client, side):
        await side.send(message=message(1, reply_to="m0"))
        with pytest.raises(TimedOut):
            async with client.ask("?", timeout_s=0.01):
                pytest.fail("it is not run")
        assert (await anext(aiter(client))).id == "m1"


async def test_a_failed_reply_has_its_error() -> None:
    async with scripted_edge() as edge, connected(edge, edge.client()) as (client, side):
        answering = asyncio.create_task(asked(edge, side))
        async with client.ask("?") as reply:
            await answering
            await side.send(message=begun(2, "so", reply_to="m1"))
            error = Error(code="MODEL_ERROR", message="it broke")
            await side.send(change=ended(3, "m2", MESSAGE_STATE_FAILED, error=error))
            assert (await reply.wait_until_ended()).error == error
            assert reply.error == error


async def test_a_reply_survives_a_reconnect_without_repeating_anything() -> None:
    async with scripted_edge() as edge, connected(edge, edge.client()) as (client, side):
        answering = asyncio.create_task(asked(edge, side))
        async with client.ask("?") as reply:
            await answering
            await side.send(message=begun(2, "Once ", reply_to="m1"))
            assert summary(await anext(reply)) == "Once "
            side.abort()
            again = await edge.accept()
            await again.read()
            await again.welcome(2, recovered=True)
            await again.send(message=begun(2, "Once upon ", reply_to="m1"))
            await again.send(delta=DeltaFrame(text="a time"))
            assert summary(await anext(reply)) in ("upon ", "upon a time")
            await again.send(change=ended(3, "m2", message=message(2, "Once upon a time!", reply_to="m1")))
            assert (await reply.wait_until_ended()).parts[0].text.text == "Once upon a time!"
            assert "".join(await rest(reply)).endswith("!")


async def test_void_deltas_are_replaced_by_a_snapshot() -> None:
    async with scripted_edge() as edge, connected(edge, edge.client()) as (client, side):
        answering = asyncio.create_task(asked(edge, side))
        async with client.ask("?") as reply:
            await answering
            await side.send(message=begun(2, "Once upon", reply_to="m1"))
            assert summary(await anext(reply)) == "Once upon"
            await side.send(message=begun(2, "Once", reply_to="m1"))
            assert summary(await anext(reply)) == ("snapshot", "Once")
            await side.send(delta=DeltaFrame(text=" more"))
            assert summary(await anext(reply)) == " more"
            assert reply.text == "Once more"


@pytest.mark.parametrize("seen", [True, False])
async def test_a_reply_that_ended_during_a_gap_is_read_from_the_history(seen: bool) -> None:
    async with scripted_edge() as edge, connected(edge, edge.client()) as (client, side):
        answering = asyncio.create_task(asked(edge, side))
        async with client.ask("?") as reply:
            await answering
            if seen:
                await side.send(message=begun(2, "Once ", reply_to="m1"))
                await anext(reply)
            side.abort()
            again = await edge.accept()
            await again.read()
            await again.welcome(9, recovered=False)
            waiting = asyncio.create_task(rest(reply))
            frame = (await again.read()).history
            found = message(2, "Once upon", reply_to="m1", state=MESSAGE_STATE_COMPLETE)
            await again.send(history=HistoryPageFrame(id=frame.id, messages=[message(1), found]))
            assert await waiting == (["upon"] if seen else ["Once upon"])
        assert isinstance(await anext(client.events()), MessagesLost)


async def test_a_reply_is_cancelled_before_and_after_it_begins() -> None:
    async with scripted_edge() as edge, connected(edge, edge.client()) as (client, side):
        answering = asyncio.create_task(asked(edge, side))
        async with client.ask("?", id="x") as reply:
            await answering
            cancelling = asyncio.create_task(reply.cancel())
            frame = (await side.read()).cancel
            assert frame.client_id == "x"
            await side.send(cancelled=CancelledFrame(id=frame.id, prevented=True))
            assert (await cancelling).prevented
            await side.send(message=begun(2, "so", reply_to="m1"))
            await anext(reply)
            cancelling = asyncio.create_task(reply.cancel())
            frame = (await side.read()).cancel
            assert frame.message_id == "m2"
            await side.send(change=ended(3, "m2", MESSAGE_STATE_CANCELLED))
            await side.send(cancelled=CancelledFrame(id=frame.id))
            await cancelling
            assert await rest(reply) == []
            assert reply.state == MESSAGE_STATE_CANCELLED


async def test_a_message_from_iteration_is_followed_from_its_text() -> None:
    async with scripted_edge() as edge, connected(edge, edge.client()) as (client, side):
        await side.send(message=begun(1, "Once "))
        await side.send(delta=DeltaFrame(text="upon "))
        await side.send(message=message(2))
        heard = aiter(client)
        first = await anext(heard)
        await anext(heard)
        async with client.follow(first) as reply:
            assert summary(await anext(reply)) == "upon "
            await side.send(delta=DeltaFrame(message_id="m1", text="a time"))
            await side.send(change=ended(3, "m1"))
            assert await rest(reply) in (["a time"], ["a ", "time"])
        async with client.follow(message(2, state=MESSAGE_STATE_COMPLETE)) as reply:
            assert await rest(reply) == []


async def test_waiting_for_a_reply_ends_with_the_client() -> None:
    async with scripted_edge() as edge, connected(edge, edge.client()) as (client, side):
        answering = asyncio.create_task(asked(edge, side))
        async with client.ask("?") as reply:
            await answering
            waiting = asyncio.create_task(rest(reply))
            await side.close(4501)
            with pytest.raises(Closed):
                await waiting


async def test_a_late_joiner_gets_an_open_message_and_its_deltas() -> None:
    time = FakeTime()
    async with scripted_edge() as edge, connected(edge, edge.client(time), seq=5) as (client, side):
        await side.send(message=begun(4, "so far"))
        await side.send(delta=DeltaFrame(text=", so good"))
        assert text_of(await anext(aiter(client))) == "so far"
        await eventually(lambda: client._runtime.inbox)
        assert [each.position for each in client.positions] == [at(5)]
