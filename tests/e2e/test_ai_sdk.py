"""The AI SDK dialect on the wire: streams of replies, resumed, stopped and regenerated."""

from __future__ import annotations

import asyncio
import uuid
from typing import TYPE_CHECKING

import pytest

from tests.e2e.fleet import Fleet, fleet_of
from tests.e2e.streaming_worker import StreamingWorker
from tests.e2e.ui_message_client import DONE, UiChat
from tests.support.patience import patient

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from trunkline.v1.agent_service_pb2 import Delivery

    from tests.support.processes import Process

pytestmark = pytest.mark.usefixtures("_patient")


@pytest.fixture
async def _patient() -> AsyncIterator[None]:
    async with asyncio.timeout(patient(30)):
        yield


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    with fleet_of(tmp_path_factory.mktemp("ai_sdk"), 1, TRUNKLINE_REPLY_LEASE_S="30") as fleet:
        yield fleet


@pytest.fixture
async def worker(fleet: Fleet) -> AsyncIterator[StreamingWorker]:
    async with StreamingWorker(fleet.router.address) as worker:
        yield worker


@pytest.fixture
def chat(edge: Process) -> UiChat:
    return UiChat(edge.address, uuid.uuid4().hex[:16])


async def begin(worker: StreamingWorker, text: str, *texts: str) -> tuple[Delivery, int]:
    """Open a reply to the message with this text and add to it."""
    delivery = await worker.wait_for_delivery(text)
    number, _ = await worker.open(f"key-{delivery.delivery_id}", delivery_id=delivery.delivery_id)
    await worker.add(number, 0, *texts)
    return delivery, number


async def test_reply_is_streamed_as_it_is_written(chat: UiChat, worker: StreamingWorker) -> None:
    async with chat.send("hello", "m1") as stream:
        _, number = await begin(worker, "hello", "one ", "two ")
        start = await stream.until("start")
        await stream.until("text-delta")
        await worker.add(number, 2, "three")
        await worker.end(number, 3)
        chunks = await stream.rest()
    assert stream.response.headers["x-vercel-ai-ui-message-stream"] == "v1"
    assert stream.response.headers["content-type"] == "text/event-stream"
    assert chunks == [
        start,
        {"type": "text-start", "id": "1"},
        {"type": "text-delta", "id": "1", "delta": "one two three"},
        {"type": "text-end", "id": "1"},
        {"type": "finish", "finishReason": "stop"},
        DONE,
    ]
