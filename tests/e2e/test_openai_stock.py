"""OpenAI's SDK for JavaScript, and pydantic-ai, as callers; and calls whose router or edge is killed."""

from __future__ import annotations

import asyncio
import json
import uuid
from typing import TYPE_CHECKING, Any

import openai
import pytest
from openai import AsyncOpenAI
from trunkline.v1.message_pb2 import MESSAGE_STATE_FAILED

from tests.e2e.fleet import Fleet, fleet_of
from tests.e2e.streaming_worker import StreamingWorker
from tests.e2e.test_openai import answer, options, said, unique, wait_until_listed
from tests.support.node import node_command
from tests.support.patience import patient
from tests.support.processes import ROOT, Process

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

SCRIPT = ROOT / "tests" / "node" / "openai_calls.mjs"

pytestmark = pytest.mark.usefixtures("_patient")


@pytest.fixture
async def _patient() -> AsyncIterator[None]:
    async with asyncio.timeout(patient(60)):
        yield


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    with fleet_of(tmp_path_factory.mktemp("openai_stock"), 1, TRUNKLINE_REPLY_LEASE_S="30") as fleet:
        yield fleet


@pytest.fixture
async def worker(fleet: Fleet) -> AsyncIterator[StreamingWorker]:
    async with StreamingWorker(fleet.router.address) as worker:
        yield worker


async def test_the_sdk_for_javascript(edge: Process, worker: StreamingWorker) -> None:
    node = node_command("openai")
    streamed, whole, failing = unique(), unique(), unique()
    steps = ("models", f"stream:{streamed}", f"whole:{whole}", f"stream:{failing}", "refused:hi")
    base = f"http://{edge.address}/openai/demo/v1"
    async with AsyncOpenAI(**options(edge)) as client:
        await wait_until_listed(client, "echo")
    with Process([*node, str(SCRIPT), base, *steps], {}, "node", ROOT) as calling:
        await answer(worker, streamed, "one ", "two")
        await answer(worker, whole, "all", usage=True)
        delivery, number = await worker.begin(failing, "half")
        await worker.end(number, 1, MESSAGE_STATE_FAILED)
        await worker.settle(delivery.delivery_id)
        lines = [json.loads(await asyncio.to_thread(calling.line, lambda line: True)) for _ in steps]
    assert lines[0] == {"step": "models", "models": ["echo"]}
    assert lines[1] == {"step": "stream", "content": "one two", "finish": "stop"}
    assert lines[2]["content"] == "all"
    assert lines[2]["usage"] == {"prompt_tokens": 3, "completion_tokens": 1, "total_tokens": 4}
    assert (lines[3]["step"], lines[3]["error"]) == ("stream", "APIError")
    assert lines[4] == {
        "step": "refused",
        "error": "BadRequestError",
        "status": 400,
        "code": "INVALID_ARGUMENT",
        "param": "n",
    }


async def test_a_framework_for_agents(edge: Process, worker: StreamingWorker) -> None:
    pydantic_ai = pytest.importorskip("pydantic_ai")
    models = pytest.importorskip("pydantic_ai.models.openai")
    providers = pytest.importorskip("pydantic_ai.providers.openai")
    base = f"http://{edge.address}/openai/demo/v1"
    model = models.OpenAIChatModel("echo", provider=providers.OpenAIProvider(base_url=base, api_key="none"))
    agent = pydantic_ai.Agent(model, instructions="be brief")
    text = unique()

    async def ask() -> list[str]:
        async with agent.run_stream(text) as result:
            return [piece async for piece in result.stream_text(delta=True)]

    async with AsyncOpenAI(**options(edge)) as client:
        await wait_until_listed(client, "echo")
    asking = asyncio.create_task(ask())
    delivery = await answer(worker, text, "one ", "two", usage=True)
    assert "".join(await asking) == "one two"
    assert json.loads(delivery.message.parts[1].custom.json) == [{"role": "system", "content": "be brief"}]


async def test_a_stream_goes_on_when_its_router_was_killed(
    edge: Process, fleet: Fleet, worker: StreamingWorker
) -> None:
    text = unique()
    async with AsyncOpenAI(**options(edge)) as client:
        await wait_until_listed(client, "echo")
        stream = await client.chat.completions.create(model="echo", messages=said(text), stream=True)
        delivery, number = await worker.begin(text, "one ", "two ")
        received = [await anext(stream), await anext(stream)]
        await fleet.restart_router()
        await worker.attach()
        delivery = await worker.wait_for_delivery(text)
        number, opened = await worker.open(f"key-{delivery.delivery_id}", delivery_id=delivery.delivery_id)
        first = opened.message.next_index
        await worker.add(number, first, *["one ", "two ", "three"][first:])
        await worker.end(number, 3)
        received += [chunk async for chunk in stream]
        await worker.settle(delivery.delivery_id)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in received) == "one two three"
    assert received[-1].choices[0].finish_reason == "stop"


@pytest.mark.parametrize("stream", [False, True])
async def test_a_call_whose_edge_was_killed_is_retried_or_raises(
    stream: bool, fleet: Fleet, worker: StreamingWorker
) -> None:
    text, named = unique(), {"X-Conversation-Id": uuid.uuid4().hex}
    edge = fleet.edges[-1]
    async with AsyncOpenAI(**options(edge, max_retries=8)) as client:
        await wait_until_listed(client, "echo")
        calling: asyncio.Task[Any] = asyncio.create_task(
            client.chat.completions.create(
                model="echo",
                messages=said(text),
                stream=stream,
                extra_headers=named,  # type: ignore[call-overload]
            )
        )
        delivery, number = await worker.begin(text, "one ")
        chunks = await calling if stream else None
        if chunks is not None:
            await anext(chunks)
            await anext(chunks)
        await asyncio.to_thread(edge.kill)
        if chunks is not None:
            # A stream that has begun is not retried, and never ends like a complete reply.
            with pytest.raises((openai.APIConnectionError, openai.APIError)):
                [chunk async for chunk in chunks]
        await asyncio.to_thread(lambda: fleet.start_edge(TRUNKLINE_EDGE_LISTEN=edge.address))
        await worker.add(number, 1, "two")
        await worker.end(number, 2)
        await worker.settle(delivery.delivery_id)
        if chunks is None:
            assert (await calling).choices[0].message.content == "one two"
    assert [each.message.parts[0].text.text for each in worker.deliveries].count(text) == 1
