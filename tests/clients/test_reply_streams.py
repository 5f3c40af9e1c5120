"""Streams of the replies to a message of a client."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from trunkline.v1.error_pb2 import Error
from trunkline.v1.frame_pb2 import CancelledFrame, DeltaFrame, HistoryPageFrame
from trunkline.v1.message_pb2 import (
    MESSAGE_STATE_CANCELLED,
    MESSAGE_STATE_COMPLETE,
    MESSAGE_STATE_FAILED,
    MESSAGE_STATE_OPEN,
    MESSAGE_STATE_UNSPECIFIED,
)
from trunkline_client import (
    Closed,
    MessagesLost,
    ReplyStatus,
    ReplyStatusFrame,
    ReplyStream,
    TimedOut,
    text_of,
)

from tests.clients.log_entries import begun, ended, summary
from tests.clients.scripted_edge import ScriptedEdge, connected, eventually, message, scripted_edge


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


async def test_the_status_of_a_question_is_its_streams_and_not_the_iterations() -> None:
    def status(value: ReplyStatus.ValueType, message_id: str = "m1") -> ReplyStatusFrame:
        return ReplyStatusFrame(message_id=message_id, status=value, attempts=1)

    retrying, end = ReplyStatus.REPLY_STATUS_RETRYING, ReplyStatus.REPLY_STATUS_ENDED
    async with scripted_edge() as edge, connected(edge, edge.client()) as (client, side):
        answering = asyncio.create_task(asked(edge, side))
        async with client.ask("hello?") as reply:
            await answering
            assert not reply.is_late
            await side.send(reply_status=status(retrying))
            await eventually(lambda: reply.is_late)
            await side.send(message=message(2, "hello!", reply_to="m1", state=MESSAGE_STATE_COMPLETE))
            await reply.wait_until_ended()
            assert not reply.is_late
        await side.send(reply_status=status(end))
        await side.send(reply_status=status(end, "m9"))
        assert (await anext(client.events())).message_id == "m9"


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
