"""What a client makes of messages that grow and change."""

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
    message,
    scripted_edge,
    soon,
)


def begun(seq: int, said: str = "", **more: Any) -> Message:
    """A message that is open."""
    made = message(seq, "x", state=MESSAGE_STATE_OPEN, **more)
    del made.parts[:]
    if said:
        made.parts.add().text.text = said
    return made


def ended(seq: int, message_id: str, state: Any = MESSAGE_STATE_COMPLETE, **more: Any) -> Change:
    """The end of a message, an entry of the log."""
    return Change(
        position=at(seq),
        address=ALICE,
        message_id=message_id,
        kind=more.pop("kind", CHANGE_KIND_ENDED),
        state=state,
        **more,
    )


def shown(event: Event) -> Any:
    """An event, short."""
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


async def test_an_open_message_comes_as_it_grows_and_ends() -> None:
    async with scripted_edge() as edge, connected(edge, edge.client()) as (client, side):
        await side.say(message=begun(1, "Once"))
        await side.say(delta=DeltaFrame(text=" upon"))
        await side.say(message=message(2, "aside"))
        await side.say(delta=DeltaFrame(message_id="m1", index=1, text=" a time"))
        await side.say(delta=DeltaFrame(message_id="unheard", text="of"))
        await side.say(change=ended(3, "m1"))
        events = client.events()
        first = await anext(events)
        assert isinstance(first, Message)
        assert shown(first) == ("message", "Once")
        assert [shown(await anext(events)) for _ in range(4)] == [
            " upon",
            ("message", "aside"),
            " a time",
            ("changed", "Once upon a time"),
        ]
        assert text_of(first) == "Once", "what was yielded does not change"
        assert [each.position for each in client.positions] == [at(3)]


async def test_iteration_yields_an_open_message_once_and_passes_over_the_rest() -> None:
    async with scripted_edge() as edge, connected(edge, edge.client()) as (client, side):
        await side.say(message=begun(1))
        await side.say(delta=DeltaFrame(text="a"))
        await side.say(message=begun(1, "a"))
        await side.say(change=ended(2, "m1"))
        await side.say(message=message(3))
        heard = aiter(client)
        assert [(await anext(heard)).id for _ in range(2)] == ["m1", "m3"]


async def test_changes_and_reads_are_entries_of_the_log() -> None:
    async with scripted_edge() as edge, connected(edge, edge.client()) as (client, side):
        await side.say(message=message(1))
        edited = ended(2, "m1", kind=CHANGE_KIND_EDITED, message=message(1, "better"))
        for _ in range(2):
            await side.say(change=edited)
        read = ReadFrame(position=at(1), user="bob", at=at(3), address=ALICE)
        for _ in range(2):
            await side.say(read=read)
        await side.say(change=ended(4, "m1", MESSAGE_STATE_RECALLED, kind=CHANGE_KIND_RECALLED))
        events = client.events()
        assert [shown(await anext(events)) for _ in range(4)] == [
            ("message", "text 1"),
            ("changed", "better"),
            read,
            ("changed", None),
        ]
        assert [each.position for each in client.positions] == [at(4)]
        await side.say(change=ended(6, "m1"))
        again = await edge.accepted()
        assert (await again.read()).resume.positions[0].position == at(4), "a gap is a gap"


async def test_what_this_client_changes_counts_as_its_ack_does() -> None:
    async with scripted_edge() as edge, connected(edge, edge.client()) as (client, side):
        editing = asyncio.create_task(client.edit("m0", "better"))
        frame = (await side.read()).edit
        assert (frame.message_id, frame.parts[0].text.text) == ("m0", "better")
        await side.say(message=message(2))
        await side.ack(frame.id, 1)
        assert (await editing).position == at(1)
        recalling = asyncio.create_task(client.recall("m0"))
        recall_id = (await side.read()).recall.id
        await side.say(error=ErrorFrame(id=recall_id, code="NOT_THE_AUTHOR", message="no"))
        with pytest.raises(Refused, match="NOT_THE_AUTHOR"):
            await recalling
        await side.say(message=message(3))
        heard = aiter(client)
        assert [(await anext(heard)).id for _ in range(2)] == ["m2", "m3"]


async def test_a_read_is_told_again_until_it_has_come_back() -> None:
    async with scripted_edge() as edge, connected(edge, edge.client()) as (client, side):
        await client.mark_read(at(3))
        await client.mark_read(at(2))
        await client.mark_read(at(7), conversation="group:team")
        assert [(await side.read()).read.position.seq for _ in range(3)] == [3, 2, 7]
        back = ReadFrame(position=at(7), user="alice", at=at(8), address=TEAM)
        await side.say(read=back)
        assert await anext(client.events()) == back
        side.break_off()
        again = await edge.accepted()
        await again.read()
        await again.welcome(0, recovered=True)
        assert (await again.read()).read.position.seq == 3
        await again.say(read=ReadFrame(position=at(3), user="alice"))
        await anext(client.events())
        assert not list(client._runtime.session._reads), "known before is known too"
    with pytest.raises(Closed):
        await client.mark_read(at(1))


async def test_receipts_of_delivery_are_sent_and_told() -> None:
    async with scripted_edge() as edge, connected(edge, edge.client()) as (client, side):
        await client.mark_delivered(at(3), conversation="group:team")
        frame = (await side.read()).delivered
        assert (frame.position, frame.conversation.id) == (at(3), "team")
        told = DeliveredFrame(position=at(3), user="bob", address=ALICE)
        await side.say(delivered=told)
        assert await anext(client.events()) == told


async def test_a_cancel_says_what_it_has_done() -> None:
    async with scripted_edge() as edge, connected(edge, edge.client()) as (client, side):
        cancelling = asyncio.create_task(client.cancel(client_id="x", conversation="group:team"))
        frame = (await side.read()).cancel
        assert (frame.client_id, frame.conversation.id) == ("x", "team")
        replies = [CancelledReply(message_id="m1", state=MESSAGE_STATE_CANCELLED)]
        await side.say(cancelled=CancelledFrame(id=frame.id, replies=replies))
        assert await cancelling == ({"m1": MESSAGE_STATE_CANCELLED}, False)
        with pytest.raises(ValueError, match="a cancel names"):
            await client.cancel()


async def test_the_edge_is_asked_for_a_window() -> None:
    settings = ClientSettings(rollup_ms=0)
    async with scripted_edge() as edge, connected(edge, edge.client(settings=settings)) as (_, side):
        assert side.query["rollup_ms"] == "0"


# Asking.


async def asked(edge: ScriptedEdge, side: Any, seq: int = 1) -> None:
    """Takes a question and acknowledges it."""
    await side.ack((await side.read()).message.id, seq)


async def rest(reply: ReplyStream) -> list[Any]:
    """All that is still yielded."""
    return [shown(each) async for each in reply]


async def test_a_streamed_reply_is_followed_to_its_end() -> None:
    async with scripted_edge() as edge, connected(edge, edge.client()) as (client, side):
        answering = asyncio.create_task(asked(edge, side))
        async with client.ask("a story?") as reply:
            await answering
            assert (reply.message, reply.text, reply.state) == (None, "", MESSAGE_STATE_UNSPECIFIED)
            await side.say(message=begun(2, reply_to="m1"))
            await side.say(delta=DeltaFrame(text="Once "))
            assert shown(await anext(reply)) == "Once "
            assert (reply.text, reply.state) == ("Once ", MESSAGE_STATE_OPEN)
            await side.say(delta=DeltaFrame(text="upon "))
            await side.say(delta=DeltaFrame(text="a time"))
            await side.say(change=ended(3, "m2"))
            await side.say(message=message(4, "a second one", reply_to="m1"))
            assert text_of(await reply.wait_until_ended()) == "Once upon a time"
            assert await rest(reply) == ["upon a time"], "what came together is one"
            assert (reply.state, reply.error) == (MESSAGE_STATE_COMPLETE, None)
        assert (await anext(aiter(client))).id == "m4", "only what was followed is left out"


async def test_a_reply_that_is_said_at_once_is_followed_like_any_other() -> None:
    async with scripted_edge() as edge, connected(edge, edge.client()) as (client, side):
        answering = asyncio.create_task(asked(edge, side))
        async with client.ask("hello?") as reply:
            await answering
            await side.say(message=message(2, "hello!", reply_to="m1", state=MESSAGE_STATE_COMPLETE))
            assert await rest(reply) == ["hello!"]
            assert reply.state == MESSAGE_STATE_COMPLETE


async def test_a_reply_may_be_faster_than_the_ack() -> None:
    async with scripted_edge() as edge, connected(edge, edge.client()) as (client, side):

        async def answer() -> None:
            said = (await side.read()).message
            await side.say(message=begun(2, "An", reply_to="m1"))
            await side.say(delta=DeltaFrame(text="swer"))
            await side.say(message=message(3, "to something else", reply_to="m0"))
            await side.ack(said.id, 1)
            await side.say(change=ended(4, "m2"))

        answering = asyncio.create_task(answer())
        async with client.ask("quick?") as reply:
            assert await rest(reply) == ["Answer"]
        await answering
        assert (await anext(aiter(client))).id == "m3"


async def test_a_question_that_is_not_taken_holds_nothing_back() -> None:
    async with scripted_edge() as edge, connected(edge, edge.client()) as (client, side):
        await side.say(message=message(1, reply_to="m0"))
        with pytest.raises(TimedOut):
            async with client.ask("?", timeout_s=0.01):
                pytest.fail("it is not run")
        assert (await anext(aiter(client))).id == "m1"


async def test_a_failed_reply_says_why() -> None:
    async with scripted_edge() as edge, connected(edge, edge.client()) as (client, side):
        answering = asyncio.create_task(asked(edge, side))
        async with client.ask("?") as reply:
            await answering
            await side.say(message=begun(2, "so", reply_to="m1"))
            error = Error(code="MODEL_ERROR", message="it broke")
            await side.say(change=ended(3, "m2", MESSAGE_STATE_FAILED, error=error))
            assert (await reply.wait_until_ended()).error == error
            assert reply.error == error


async def test_a_reply_survives_a_reconnect_without_repeating_anything() -> None:
    async with scripted_edge() as edge, connected(edge, edge.client()) as (client, side):
        answering = asyncio.create_task(asked(edge, side))
        async with client.ask("?") as reply:
            await answering
            await side.say(message=begun(2, "Once ", reply_to="m1"))
            assert shown(await anext(reply)) == "Once "
            side.break_off()
            again = await edge.accepted()
            await again.read()
            await again.welcome(2, recovered=True)
            await again.say(message=begun(2, "Once upon ", reply_to="m1"))
            await again.say(delta=DeltaFrame(text="a time"))
            assert shown(await anext(reply)) in ("upon ", "upon a time")
            await again.say(change=ended(3, "m2", message=message(2, "Once upon a time!", reply_to="m1")))
            assert (await reply.wait_until_ended()).parts[0].text.text == "Once upon a time!"
            assert "".join(await rest(reply)).endswith("!")


async def test_what_was_yielded_and_does_not_hold_is_told_as_a_snapshot() -> None:
    async with scripted_edge() as edge, connected(edge, edge.client()) as (client, side):
        answering = asyncio.create_task(asked(edge, side))
        async with client.ask("?") as reply:
            await answering
            await side.say(message=begun(2, "Once upon", reply_to="m1"))
            assert shown(await anext(reply)) == "Once upon"
            await side.say(message=begun(2, "Once", reply_to="m1"))
            assert shown(await anext(reply)) == ("snapshot", "Once")
            await side.say(delta=DeltaFrame(text=" more"))
            assert shown(await anext(reply)) == " more"
            assert reply.text == "Once more"


@pytest.mark.parametrize("seen", [True, False])
async def test_a_reply_that_ended_unseen_is_looked_up(seen: bool) -> None:
    async with scripted_edge() as edge, connected(edge, edge.client()) as (client, side):
        answering = asyncio.create_task(asked(edge, side))
        async with client.ask("?") as reply:
            await answering
            if seen:
                await side.say(message=begun(2, "Once ", reply_to="m1"))
                await anext(reply)
            side.break_off()
            again = await edge.accepted()
            await again.read()
            await again.welcome(9, recovered=False)
            waiting = asyncio.create_task(rest(reply))
            frame = (await again.read()).history
            found = message(2, "Once upon", reply_to="m1", state=MESSAGE_STATE_COMPLETE)
            await again.say(history=HistoryPageFrame(id=frame.id, messages=[message(1), found]))
            assert await waiting == (["upon"] if seen else ["Once upon"])
        assert isinstance(await anext(client.events()), MessagesLost)


async def test_a_reply_is_cancelled_before_and_after_it_began() -> None:
    async with scripted_edge() as edge, connected(edge, edge.client()) as (client, side):
        answering = asyncio.create_task(asked(edge, side))
        async with client.ask("?", id="x") as reply:
            await answering
            cancelling = asyncio.create_task(reply.cancel())
            frame = (await side.read()).cancel
            assert frame.client_id == "x"
            await side.say(cancelled=CancelledFrame(id=frame.id, prevented=True))
            assert (await cancelling).prevented
            await side.say(message=begun(2, "so", reply_to="m1"))
            await anext(reply)
            cancelling = asyncio.create_task(reply.cancel())
            frame = (await side.read()).cancel
            assert frame.message_id == "m2"
            await side.say(change=ended(3, "m2", MESSAGE_STATE_CANCELLED))
            await side.say(cancelled=CancelledFrame(id=frame.id))
            await cancelling
            assert await rest(reply) == []
            assert reply.state == MESSAGE_STATE_CANCELLED


async def test_a_message_that_iteration_yielded_is_followed_from_there() -> None:
    async with scripted_edge() as edge, connected(edge, edge.client()) as (client, side):
        await side.say(message=begun(1, "Once "))
        await side.say(delta=DeltaFrame(text="upon "))
        await side.say(message=message(2))
        heard = aiter(client)
        first = await anext(heard)
        await anext(heard)
        async with client.follow(first) as reply:
            assert shown(await anext(reply)) == "upon "
            await side.say(delta=DeltaFrame(message_id="m1", text="a time"))
            await side.say(change=ended(3, "m1"))
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


async def test_an_open_message_of_before_is_yielded_to_a_late_joiner() -> None:
    time = FakeTime()
    async with scripted_edge() as edge, connected(edge, edge.client(time), seq=5) as (client, side):
        await side.say(message=begun(4, "so far"))
        await side.say(delta=DeltaFrame(text=", so good"))
        assert text_of(await anext(aiter(client))) == "so far"
        await soon(lambda: client._runtime.inbox)
        assert [each.position for each in client.positions] == [at(5)]
