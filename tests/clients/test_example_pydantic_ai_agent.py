"""The example agent of a framework, at a model's server on this machine."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from trunkline.v1.history_service_pb2 import ListMessagesResponse
from trunkline.v1.message_pb2 import (
    MESSAGE_STATE_CANCELLED,
    MESSAGE_STATE_COMPLETE,
    MESSAGE_STATE_FAILED,
    ROLE_AGENT,
    ROLE_USER,
    Author,
    Message,
)
from trunkline_client import Client, text, text_of
from trunkline_client.testing import FakeRouter, run_worker

from tests.clients.model_server import DONE, ModelServer, event, model_server
from tests.support.patience import patient
from tests.support.processes import ROOT, Process, edge_process, router_process

pytest.importorskip("pydantic_ai", reason='needs `pip install "trunkline[pydantic-ai]"`')

from examples import pydantic_ai_agent as example


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


class History:
    """The part of a backend that the agent uses."""

    def __init__(self) -> None:
        self.messages: list[Message] = []

    async def list_messages(self, *_: Any, **__: Any) -> ListMessagesResponse:
        return ListMessagesResponse(messages=self.messages)


@asynccontextmanager
async def agent() -> AsyncIterator[tuple[ModelServer, FakeRouter, History]]:
    async with model_server() as model:
        options = example.parse(["--base-url", model.url, "--model", "m", "--api-key", "k"])
        history: Any = History()
        async with run_worker(example.make_worker(options, example.make_agent(options), history)) as router:
            yield model, router, history


async def test_text_and_reasoning_are_streamed() -> None:
    async with agent() as (model, router, history):
        history.messages = [
            Message(author=Author(role=ROLE_USER), parts=text("earlier")),
            Message(author=Author(role=ROLE_AGENT), parts=text("answered")),
        ]
        model.body = [event(reasoning_content="hm"), event(content="Good "), event(content="luck"), *DONE]
        delivery = await router.deliver("Deal")
        reply = await (await delivery.reply()).wait()
        assert (reply.text, reply.state) == ("Good luck", MESSAGE_STATE_COMPLETE)
        assert reply.message.parts[0].reasoning.text == "hm"
        assert (await delivery.wait()).outcome == "ack"
    (request,) = model.requests
    roles = [(each["role"], each["content"]) for each in request["messages"]]
    assert roles[1:] == [("user", "earlier"), ("assistant", "answered"), ("user", "Deal")]
    assert (request["model"], request["stream"]) == ("m", True)


async def test_a_tool_is_called_and_its_result_shown() -> None:
    async with agent() as (model, router, _):
        call = {
            "index": 0,
            "id": "c",
            "type": "function",
            "function": {"name": "roll_dice", "arguments": '{"sides": 1}'},
        }
        model.first = [[event(tool_calls=[call]), *DONE]]
        model.body = [event(content="You rolled a 1"), *DONE]
        reply = await (await (await router.deliver("Roll")).reply()).wait()
        called, result, said = reply.message.parts
        assert (called.tool_call.call_id, called.tool_call.name) == ("c", "roll_dice")
        assert json.loads(called.tool_call.arguments) == {"sides": 1}
        rolled = result.tool_result
        assert (rolled.call_id, rolled.result, rolled.failed) == ("c", "1", False)
        assert said.text.text == "You rolled a 1"
    assert model.requests[1]["messages"][-1]["role"] == "tool"


@pytest.mark.parametrize("place", ["before the headers", "before the first token", "in the middle"])
async def test_a_cancel_closes_the_connection_to_the_model(place: str) -> None:
    async with agent() as (model, router, _):
        model.hangs, model.is_silent = True, place == "before the headers"
        model.body = [event(content="so far")] if place == "in the middle" else []
        delivery = await router.deliver("Deal")
        reply = await delivery.reply()
        await asyncio.wait_for(model.asked.wait(), patient(5))
        await reply.wait_for_text("so far" if model.body else "")
        await delivery.cancel()
        await asyncio.wait_for(model.left.wait(), patient(5))
        assert reply.state == MESSAGE_STATE_CANCELLED
        assert (await delivery.wait()).outcome == "ack"


@pytest.mark.parametrize(
    ("status", "body"),
    [
        ("401 Unauthorized", [b'{"error": {"message": "no such key"}}']),
        ("200 OK", [event(content="so far"), b""]),
        ("200 OK", [event(content="so far"), b'data: {"error": {"message": "overloaded"}}\n\n']),
    ],
)
async def test_a_failure_of_the_model_fails_the_reply(status: str, body: list[bytes]) -> None:
    async with agent() as (model, router, _):
        model.status, model.body = status, body
        delivery = await router.deliver("Deal")
        reply = await (await delivery.reply()).wait()
        assert reply.state == MESSAGE_STATE_FAILED
        assert reply.text == ("so far" if len(body) > 1 else "")
        await delivery.wait()


async def test_an_answer_that_was_cut_off_is_continued() -> None:
    async with agent() as (model, router, _):
        model.body, model.hangs = [event(content="Once ")], True
        delivery = await router.deliver("Tell")
        reply = await (await delivery.reply()).wait_for_text("Once ")
        model.body, model.hangs = [event(content="upon a time"), *DONE], False
        await router.give_away(delivery)
        await asyncio.wait_for(model.left.wait(), patient(5))
        await router.give_back(delivery)
        assert (await reply.wait()).text == "Once upon a time"
    continued = [(each["role"], each["content"]) for each in model.requests[1]["messages"]]
    assert continued[-3:-1] == [("user", "Tell"), ("assistant", "Once ")]


async def test_the_program_answers_a_person_and_hears_a_cancel(tmp_path: Path) -> None:
    """The script itself, with a router and an edge."""
    script = str(ROOT / "examples" / "pydantic_ai_agent.py")
    async with model_server() as model:
        model.body, model.hangs = [event(content="so far")], True
        with router_process(tmp_path) as router, edge_process(router.address) as edge:
            options = ["--router", router.address, "--base-url", model.url, "--api-key", "k"]
            env = {"NO_PROXY": "127.0.0.1"}
            program = await asyncio.to_thread(
                lambda: Process.start([sys.executable, script, *options], env, name="agent", ready=bool)
            )
            with program:
                place = {"tenant": "demo", "agent": "dealer", "platform": "web"}
                async with (
                    asyncio.timeout(patient(20)),
                    Client(f"ws://{edge.address}", **place, conversation="person:ann") as client,
                    client.ask("Deal") as reply,
                ):
                    assert text_of((await anext(aiter(reply))).message) == "so far"
                    await reply.cancel()
                    await model.left.wait()
                    assert (await reply.wait_until_ended()).state == MESSAGE_STATE_CANCELLED
                assert await asyncio.to_thread(program.terminate) == 0
