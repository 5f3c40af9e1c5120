"""The streaming example agent: its own answers, and those of a model."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from trunkline.v1.agent_service_pb2 import AttachResponse, Delivery
from trunkline.v1.history_service_pb2 import ListMessagesResponse
from trunkline.v1.message_pb2 import (
    MESSAGE_STATE_CANCELLED,
    MESSAGE_STATE_COMPLETE,
    MESSAGE_STATE_FAILED,
    ROLE_USER,
    Author,
    Message,
    Part,
    TextPart,
)
from trunkline_client.reader_errors import AGENT_FAILED

from examples import streaming_agent as example
from tests.clients.model_server import event, model_server
from tests.clients.scripted_edge import ALICE
from tests.clients.scripted_edge import message as said_by_agent
from tests.clients.scripted_router import StreamSide, scripted_router
from tests.support.patience import patient

QUESTION = Message(
    id="m1",
    address=ALICE,
    author=Author(role=ROLE_USER, user="alice"),
    parts=[Part(text=TextPart(text="What is it?"))],
)


@asynccontextmanager
async def agent(*arguments: str) -> AsyncIterator[StreamSide]:
    """Runs the example, attached to a scripted router."""
    async with scripted_router() as router:
        router.answers["ListMessages"] = lambda _: ListMessagesResponse(
            messages=[said_by_agent(1, "earlier")]
        )
        options = example.parse(["--router", router.address, "--pace-s", "0", *arguments])
        serving = asyncio.create_task(example.serve(options))
        try:
            async with asyncio.timeout(patient(10)):
                side = await router.stream()
                hello = await side.welcome()
                assert list(hello.agents) == ["guide"]
                yield side
        finally:
            serving.cancel()
            await asyncio.wait({serving})


async def ask(side: StreamSide) -> None:
    """Delivers the question."""
    await side.write(AttachResponse(deliveries=[Delivery(delivery_id=1, attempt=1, message=QUESTION)]))


async def answer(side: StreamSide) -> tuple[Any, list[Any]]:
    """Reads the reply to its end; returns the end and the deltas."""
    await ask(side)
    await side.open_reply()
    end = await side.end_reply()
    return end, [delta for each in side._unread["deltas"] for delta in each.deltas]


def text(deltas: list[Any]) -> str:
    return "".join(each.text for each in deltas)


async def test_words_of_a_model_are_streamed_however_they_are_split() -> None:
    async with model_server() as model, agent("--base-url", model.url, "--api-key", "k") as side:
        stream = (
            b": keep alive\n\n"
            + event(role="assistant", content="")
            + event(reasoning_content="hm")
            + event(content="Grüße, ")
            + event(content="world")
            + event(tool_calls=[{"index": 0, "id": "c", "function": {"name": "look", "arguments": '{"a'}}])
            + event(tool_calls=[{"index": 0, "function": {"arguments": '":1}'}}])
            + b"data: [DONE]\n\n"
        )
        model.body = [stream[at : at + 7] for at in range(0, len(stream), 7)]
        end, deltas = await answer(side)
        assert end.state == MESSAGE_STATE_COMPLETE
        assert (text(deltas), "".join(each.reasoning for each in deltas)) == ("Grüße, world", "hm")
        calls = [each.part.tool_call for each in deltas if each.HasField("part")]
        assert [(each.call_id, each.name) for each in calls] == [("c", "look"), ("c", "")]
        assert "".join(each.arguments for each in calls) == '{"a":1}'
        assert model.requests[0] == {
            "model": "default",
            "stream": True,
            "messages": [
                {"role": "assistant", "content": "earlier"},
                {"role": "user", "content": "What is it?"},
            ],
        }
        assert "authorization: bearer k" in model.headers[0].lower()


@pytest.mark.parametrize(
    ("status", "body", "expected"),
    [
        ("401 Unauthorized", b'{"error": {"message": "no such key"}}', "answered 401: no such key"),
        ("500 Oops", b"<html>", "answered 500: <html>"),
        ("503 Busy", b"{}", "answered 503"),
        ("200 OK", event(content="so") + b'data: {"error": "overloaded"}\n\n', "failed: overloaded"),
        ("200 OK", b"data: {\n\n", "invalid JSON"),
        ("200 OK", event(content="so"), "ended its answer early"),
    ],
)
async def test_a_failure_of_the_model_fails_the_reply_and_is_logged(
    status: str, body: bytes, expected: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with model_server() as model, agent("--base-url", model.url) as side:
        model.status, model.body = status, [body]
        end, _ = await answer(side)
        assert (end.state, end.error) == (MESSAGE_STATE_FAILED, AGENT_FAILED)
        await side.read_until("settlements")
    assert expected in caplog.text


async def test_a_model_that_disconnects_or_is_absent_fails_the_reply(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with model_server() as model, agent("--base-url", model.url) as side:
        model.body = [event(content="so far"), b""]
        end, deltas = await answer(side)
        assert (end.error, text(deltas)) == (AGENT_FAILED, "so far")
    async with agent("--base-url", "http://127.0.0.1:1") as side:
        end, _ = await answer(side)
        assert end.error == AGENT_FAILED
        await side.read_until("settlements")
    assert "connection to the model server failed" in caplog.text


@pytest.mark.parametrize("is_silent", [False, True])
async def test_a_cancel_closes_the_connection_to_the_model(is_silent: bool) -> None:
    async with model_server() as model, agent("--base-url", model.url) as side:
        model.body, model.hangs, model.is_silent = [event(content="so far")], True, is_silent
        await ask(side)
        await side.open_reply()
        if is_silent:
            await model.asked.wait()
        else:
            await side.read_text("so far")
        await side.write(AttachResponse(cancelled=[1]))
        assert (await side.end_reply()).state == MESSAGE_STATE_CANCELLED
        await model.left.wait()
        await side.read_until("settlements")


async def test_an_interrupted_answer_is_continued() -> None:
    async with model_server() as model, agent("--base-url", model.url) as side:
        model.body = [event(content=" the rest"), b"data: [DONE]\n\n"]
        await ask(side)
        await side.open_reply("Once", next_index=4)
        await side.read_text(" the rest")
        assert model.requests[0]["messages"][-2] == {"role": "assistant", "content": "Once"}
        await side.end_reply()


# Answers of its own.

GUIDE = example.Guide(example.ROOT, 0)


def test_a_question_finds_its_section() -> None:
    assert "Resume" in GUIDE.text("How do I resume after a reconnect?", "x").splitlines()[0]
    assert "Heartbeats" in GUIDE.text("heartbeat?", "x")


@pytest.mark.parametrize("question", ["", "hello", "?!", "Wie geht es dir", "x" * 10_000, "🙂"])
def test_any_question_has_an_answer(question: str) -> None:
    assert GUIDE.text(question, "x")
    assert example.Guide(Path("/nowhere"), 0).text(question, "x")


async def test_a_story_begun_by_another_worker_is_completed() -> None:
    asked = Message(id="m1", parts=[Part(text=TextPart(text="Tell me a story"))])
    whole = GUIDE.text("Tell me a story", "m1")
    pieces = [each async for each in GUIDE.answer(asked, "")]
    assert "".join(str(each) for each in pieces) == whole
    assert len(pieces) > 100
    rest = [str(each) async for each in GUIDE.answer(asked, whole[:100])]
    assert whole[:100] + "".join(rest) == whole
    again = [str(each) async for each in GUIDE.answer(asked, "something else")]
    assert "".join(again).strip() == whole


async def test_a_story_is_streamed_and_can_be_cancelled() -> None:
    async with agent("--pace-s", "3600") as side:
        await ask(side)
        opening = await side.open_reply()
        await side.read_until("deltas")
        await side.send_ended(opening.reply, MESSAGE_STATE_CANCELLED)
        assert (await side.read_until("settlements"))[0].WhichOneof("outcome") is None
