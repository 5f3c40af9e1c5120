"""The stock clients of the AI SDK, in Node, with any worker."""

from __future__ import annotations

import asyncio
import json
import uuid
from typing import TYPE_CHECKING, Any

import pytest
from trunkline.v1.message_pb2 import MESSAGE_STATE_CANCELLED

from tests.e2e.fleet import Fleet, fleet_of
from tests.e2e.polling import wait_until
from tests.e2e.streaming_worker import StreamingWorker
from tests.support.node import node_command
from tests.support.patience import patient
from tests.support.processes import ROOT, Process

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from typing import Self

SCRIPT = ROOT / "tests" / "node" / "ai_sdk_chat.mjs"


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    with fleet_of(tmp_path_factory.mktemp("ai_sdk_stock"), 1, TRUNKLINE_REPLY_LEASE_S="60") as fleet:
        yield fleet


@pytest.fixture
async def worker(fleet: Fleet) -> AsyncIterator[StreamingWorker]:
    async with asyncio.timeout(patient(40)), StreamingWorker(fleet.router.address) as worker:
        yield worker


class StockChat:
    """A process with a chat that takes steps."""

    def __init__(self, edge: Process, chat: str, *steps: str) -> None:
        node = node_command("ai", "@ai-sdk/react")
        api = f"http://{edge.address}/ai/demo/echo/chat"
        self._process = Process([*node, str(SCRIPT), api, chat, *steps], {}, "node", ROOT)

    async def shown(self, text: str) -> None:
        """Wait until the page displays this text of the answer."""
        await asyncio.to_thread(self._process.line, lambda line: json.loads(line).get("text") == text)

    async def after(self, step: str) -> Any:
        """Wait until a step is done; return the state of the chat."""
        line = await asyncio.to_thread(self._process.line, lambda line: json.loads(line).get("step") == step)
        return json.loads(line)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._process.close()


def texts(state: Any) -> list[str]:
    return ["".join(part.get("text", "") for part in message["parts"]) for message in state["messages"]]


async def test_message_is_answered_and_answered_again(edge: Process, worker: StreamingWorker) -> None:
    with StockChat(edge, uuid.uuid4().hex[:16], "send:what is it", "regenerate") as chat:
        delivery, number = await worker.begin("what is it", "a ", "reply")
        await worker.end(number, 2)
        await worker.settle(delivery.delivery_id)
        sent = await chat.after("send")
        assert (sent["status"], sent["error"], texts(sent)) == ("ready", None, ["what is it", "a reply"])
        await wait_until(lambda: len(worker.deliveries) == 2, "it is delivered again")
        number, _ = await worker.open("again", delivery_id=worker.deliveries[1].delivery_id)
        await worker.add(number, 0, "another")
        await worker.end(number, 1)
        again = await chat.after("regenerate")
        assert (again["status"], again["error"], texts(again)) == ("ready", None, ["what is it", "another"])
    assert sent["messages"][1]["id"] != again["messages"][1]["id"]


async def test_page_that_is_loaded_again_resumes_twice_and_shows_once(
    edge: Process, worker: StreamingWorker
) -> None:
    ident = uuid.uuid4().hex[:16]
    with StockChat(edge, ident, "send:resume me") as first:
        _, number = await worker.begin("resume me", "one ", "two ")
        await first.shown("one two ")
    with StockChat(edge, ident, "resume", "resume") as second:
        await second.shown("one two ")
        await worker.add(number, 2, "three")
        await worker.end(number, 3)
        state = await second.after("resume")
        assert (state["status"], state["error"]) == ("ready", None)
        assert texts(state) == ["resume me", "one two three"]
        assert texts(await second.after("resume")) == ["resume me", "one two three"]
    assert not worker.cancelled


async def test_stop_ends_the_reply_for_the_worker_and_the_page(
    edge: Process, worker: StreamingWorker
) -> None:
    with StockChat(edge, uuid.uuid4().hex[:16], "begin:stop me") as chat:
        await worker.begin("stop me", "one ")
        state = await chat.after("begin")
    assert (state["status"], state["error"], texts(state)) == ("ready", None, ["stop me", "one "])
    assert [ended.state for ended in worker.ended] == [MESSAGE_STATE_CANCELLED]


@pytest.mark.parametrize("victim", ["edge", "router"])
async def test_killed_process_is_no_end_of_a_reply(
    fleet: Fleet, worker: StreamingWorker, victim: str
) -> None:
    """The page of a killed edge displays an error and resumes; a router's is not noticed."""
    edge = await asyncio.to_thread(fleet.start_edge)
    ident, text = uuid.uuid4().hex[:16], f"kill the {victim}"
    with StockChat(edge, ident, f"send:{text}") as chat:
        delivery, number = await worker.begin(text, "one ", "two ")
        await worker.wait_durable(number, 2)
        await chat.shown("one two ")
        if victim == "edge":
            await asyncio.to_thread(edge.kill)
            state = await chat.after("send")
            assert (state["status"], texts(state)) == ("error", [text, "one two "])
            assert "terminated" in state["error"]
        else:
            await fleet.restart_router()
            await worker.attach()
            again = await worker.wait_for_delivery(text)
            number, opened = await worker.open(f"key-{delivery.delivery_id}", delivery_id=again.delivery_id)
            assert not opened.error.code, opened
            await worker.add(number, 2, "three")
            await worker.end(number, 3)
            state = await chat.after("send")
            assert (state["status"], texts(state)) == ("ready", [text, "one two three"])
            return
    with StockChat(fleet.edges[0], ident, "resume") as resumed:
        await resumed.shown("one two ")
        await worker.add(number, 2, "three")
        await worker.end(number, 3)
        state = await resumed.after("resume")
    assert (state["status"], texts(state)) == ("ready", [text, "one two three"])


async def test_refusal_is_the_message_of_the_error(edge: Process) -> None:
    with StockChat(edge, "x" * 65, "send:hello") as chat:
        state = await chat.after("send")
    assert (state["status"], state["error"]) == ("error", "id: must have 1 to 64 characters")
