"""The AI SDK dialect on the wire: streams of replies, resumed, stopped and regenerated."""

from __future__ import annotations

import asyncio
import uuid
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from trunkline.v1.agent_service_pb2 import Reject, ReplyDeltas, RetryLater
from trunkline.v1.message_pb2 import MESSAGE_STATE_FAILED, Delta

from tests.e2e.fleet import Fleet, fleet_of, metric
from tests.e2e.polling import wait_until
from tests.e2e.streaming_worker import StreamingWorker
from tests.e2e.ui_message_client import DONE, UiChat
from tests.support.patience import patient

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from trunkline.v1.agent_service_pb2 import Delivery

    from tests.support.processes import Process

SLOW = "trunkline_edge_slow_consumers_total"

pytestmark = pytest.mark.usefixtures("_patient")


@pytest.fixture
async def _patient() -> AsyncIterator[None]:
    async with asyncio.timeout(patient(30)):
        yield


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    with fleet_of(tmp_path_factory.mktemp("ai_sdk"), 1, TRUNKLINE_REPLY_LEASE_S="60") as fleet:
        yield fleet


@pytest.fixture
async def worker(fleet: Fleet) -> AsyncIterator[StreamingWorker]:
    async with StreamingWorker(fleet.router.address) as worker:
        yield worker


@pytest.fixture
def chat(edge: Process) -> UiChat:
    return UiChat(edge.address, uuid.uuid4().hex[:16])


async def test_parts_that_come_together_stay_in_order(chat: UiChat, worker: StreamingWorker) -> None:
    """Deltas of several kinds within one window are encoded one after the other."""
    async with chat.send("mixed", "m1") as stream:
        delivery, number = await worker.begin("mixed", "one ")
        await stream.until("text-delta")
        kinds: list[dict[str, str]] = [{"text": "two"}, {"reasoning": "hm"}, {"text": "three"}]
        deltas = [Delta(index=index, **content) for index, content in enumerate(kinds, 1)]
        await worker.send(deltas=[ReplyDeltas(reply=number, deltas=deltas)])
        await worker.end(number, 4)
        await worker.settle(delivery.delivery_id)
        chunks = await stream.rest()
    shown = [(chunk["type"], chunk.get("delta")) for chunk in chunks[1:-2]]
    assert shown == [
        ("text-start", None),
        ("text-delta", "one two"),
        ("text-end", None),
        ("reasoning-start", None),
        ("reasoning-delta", "hm"),
        ("reasoning-end", None),
        ("text-start", None),
        ("text-delta", "three"),
        ("text-end", None),
    ]


def deliveries(worker: StreamingWorker, chat: UiChat) -> list[Delivery]:
    """Deliveries of a chat, those that were delivered again counted once."""
    found = [d for d in worker.deliveries if d.message.address.conversation.id.endswith(chat.chat)]
    return list({d.message.id: d for d in found}.values())


async def next_delivery(worker: StreamingWorker, chat: UiChat, before: int) -> Delivery:
    """Wait for the delivery behind the first `before` of a chat."""
    await wait_until(lambda: len(deliveries(worker, chat)) > before, "it is delivered")
    return deliveries(worker, chat)[before]


async def test_reply_is_streamed_as_it_is_written(chat: UiChat, worker: StreamingWorker) -> None:
    async with chat.send("hello", "m1") as stream:
        _, number = await worker.begin("hello", "one ", "two ")
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


async def test_repeated_message_gets_the_reply_to_the_first(chat: UiChat, worker: StreamingWorker) -> None:
    """Live while it is open, and from the log once it has ended."""
    async with chat.send("again", "m1") as first:
        _, number = await worker.begin("again", "one ", "two ")
        await worker.wait_durable(number, 2)
        async with chat.send("again", "m1") as second:
            await second.until("text-delta")
            await worker.add(number, 2, "three")
            await worker.end(number, 3)
            expected = await first.rest()
            assert await second.rest() == expected
    async with chat.send("again", "m1") as third:
        assert await third.rest() == expected
    assert len(deliveries(worker, chat)) == 1
    async with chat.http.stream("POST", chat.api, json=chat.body("other text", "m1")) as mismatch:
        assert mismatch.status_code == 409
        assert "was already used" in (await mismatch.aread()).decode()


async def test_resumed_streams_bring_the_whole_reply(chat: UiChat, worker: StreamingWorker) -> None:
    """Two at once, as React's StrictMode opens them, and none once the reply has ended."""
    async with chat.resume() as nothing:
        assert nothing.response.status_code == 204
    async with chat.send("resume", "m1") as stream:
        _, number = await worker.begin("resume", "one ", "two ")
        await stream.until("text-delta")
    # The client has disconnected, which cancels nothing.
    await worker.wait_durable(number, 2)
    async with chat.resume() as first, chat.resume() as second:
        await first.until("text-delta")
        await worker.add(number, 2, "three")
        await worker.end(number, 3)
        chunks = await first.rest()
        assert await second.rest() == chunks
    assert [chunk["type"] for chunk in chunks[:-1]] == [
        "start",
        "text-start",
        "text-delta",
        "text-end",
        "finish",
    ]
    assert first.text == "one two three"
    async with chat.resume() as ended:
        assert (ended.response.status_code, await ended.response.aread()) == (204, b"")
    assert not worker.cancelled


async def test_page_loaded_before_the_first_word_waits_for_it(
    edge: Process, chat: UiChat, worker: StreamingWorker
) -> None:
    def connects() -> float:
        return metric(edge, "trunkline_edge_connections_opened_total")

    async with chat.send("slow", "m1"):
        delivery = await worker.wait_for_delivery("slow")
    before = connects()

    async def resumed() -> list[Any]:
        async with chat.resume() as stream:
            assert stream.response.status_code == 200
            return await stream.rest()

    resuming = asyncio.create_task(resumed())
    await wait_until(lambda: connects() > before, "the page is connected")
    number, _ = await worker.open("key-slow", delivery_id=delivery.delivery_id)
    await worker.add(number, 0, "late")
    await worker.end(number, 1)
    assert {"type": "text-delta", "id": "1", "delta": "late"} in await resuming


async def test_stop_cancels_what_is_written_and_what_is_not_yet(
    chat: UiChat, worker: StreamingWorker
) -> None:
    async with chat.send("stop me", "m1") as stream:
        delivery, _ = await worker.begin("stop me", "one ")
        await stream.until("text-delta")
        assert len((await chat.stop())["cancelled"]) == 1
        assert (await stream.rest())[-3:] == [{"type": "text-end", "id": "1"}, {"type": "abort"}, DONE]
    await worker.settle(delivery.delivery_id)
    async with chat.send("stop this, too", "m2"):
        delivery = await worker.wait_for_delivery("stop this, too")
        assert await chat.stop() == {"cancelled": []}
    await wait_until(lambda: delivery.delivery_id in worker.cancelled, "the worker is notified")
    assert await UiChat(chat.http.base_url.netloc.decode(), "nothing").stop() == {"cancelled": []}


async def answered(
    worker: StreamingWorker, chat: UiChat, text: str, ident: str, answer: str, **fields: Any
) -> str:
    """Send a message and answer it; return the answer's id."""
    before = len(deliveries(worker, chat))
    async with chat.send(text, ident, **fields) as stream:
        delivery = await next_delivery(worker, chat, before)
        number, _ = await worker.open(f"key-{delivery.delivery_id}", delivery_id=delivery.delivery_id)
        await worker.add(number, 0, answer)
        await worker.end(number, 1)
        await worker.settle(delivery.delivery_id)
        chunks = await stream.rest()
    assert stream.text == answer
    return str(chunks[0]["messageId"])


@pytest.mark.parametrize("names_answer", [True, False])
async def test_regenerated_answer_is_no_duplicate(
    chat: UiChat, worker: StreamingWorker, names_answer: bool
) -> None:
    first = await answered(worker, chat, "question", "m1", "first")
    fields = {"trigger": "regenerate-message", **({"messageId": first} if names_answer else {})}
    second = await answered(worker, chat, "question", "m1", "second", **fields)
    assert second != first
    assert [part["parts"][0]["text"] for part in await chat.load()] == ["question", "second"]
    if names_answer:
        # A retry replaces the same answer, so it is the same.
        async with chat.send("question", "m1", **fields) as repeated:
            await repeated.rest()
        assert repeated.text == "second"
    third = {"trigger": "regenerate-message", **({"messageId": second} if names_answer else {})}
    await answered(worker, chat, "question", "m1", "third", **third)
    assert [part["parts"][0]["text"] for part in await chat.load()] == ["question", "third"]


async def test_concurrent_regenerations_make_one_answer(chat: UiChat, worker: StreamingWorker) -> None:
    await answered(worker, chat, "question", "m1", "first")
    again = {"trigger": "regenerate-message"}
    async with chat.send("question", "m1", **again) as one, chat.send("question", "m1", **again) as two:
        delivery = await next_delivery(worker, chat, 1)
        number, _ = await worker.open("key-again", delivery_id=delivery.delivery_id)
        await worker.add(number, 0, "sec")
        await one.until("text-delta")
        async with chat.send("question", "m1", **again) as three:
            await worker.add(number, 1, "ond")
            await worker.end(number, 2)
            await one.rest()
            await two.rest()
            await three.rest()
    assert {one.text, two.text, three.text} == {"second"}
    assert len(deliveries(worker, chat)) == 2


async def test_edited_message_replaces_the_first(chat: UiChat, worker: StreamingWorker) -> None:
    await answered(worker, chat, "first text", "m1", "first")
    await answered(worker, chat, "second text", "m1", "second", messageId="m1")
    shown = await chat.load()
    assert shown[0]["id"] == "m1"
    assert [each["parts"][0]["text"] for each in shown] == ["second text", "second"]


async def test_failed_reply_ends_with_an_error(chat: UiChat, worker: StreamingWorker) -> None:
    async with chat.send("fail", "m1") as stream:
        _, number = await worker.begin("fail", "one ")
        await worker.end(number, 1, MESSAGE_STATE_FAILED)
        chunks = await stream.rest()
    assert [chunk["type"] for chunk in chunks[-3:-1]] == ["text-end", "error"]
    assert chunks[-1] == DONE


@pytest.mark.parametrize("gives_up", [True, False])
async def test_message_that_fails_is_reported_and_ends(
    chat: UiChat, worker: StreamingWorker, gives_up: bool
) -> None:
    """With an error if the agent gives up, or without an answer if it has none."""
    async with chat.send(f"try {gives_up}", "m1") as stream:
        delivery = await worker.wait_for_delivery(f"try {gives_up}")
        await worker.settle(delivery.delivery_id, retry=RetryLater())
        retrying = await stream.until("data-retrying")
        assert retrying == {"type": "data-retrying", "data": {"attempts": 1}, "transient": True}
        # Behind it may come what other tests have left.
        await wait_until(lambda: deliveries(worker, chat)[0].attempt == 2, "it is delivered again")
        outcome = {"reject": Reject(reason="broken")} if gives_up else {}
        await worker.settle(deliveries(worker, chat)[0].delivery_id, **outcome)
        chunks = await stream.rest()
    types = [chunk["type"] for chunk in chunks[1:-1]]
    assert types == (["start", "error"] if gives_up else ["abort"])
    assert chunks[-1] == DONE


async def test_stream_survives_a_router_that_is_killed(
    fleet: Fleet, chat: UiChat, worker: StreamingWorker
) -> None:
    async with chat.send("survive", "m1") as stream:
        delivery, number = await worker.begin("survive", "one ", "two ")
        await worker.wait_durable(number, 2)
        await worker.add(number, 2, "three ")
        while "three" not in stream.text:
            await stream.next()
        await fleet.restart_router()
        await worker.attach()
        again = await worker.wait_for_delivery("survive")
        number, opened = await worker.open(f"key-{delivery.delivery_id}", delivery_id=again.delivery_id)
        rest = ["one ", "two ", "three ", "four"][opened.message.next_index :]
        await worker.add(number, opened.message.next_index, *rest)
        await worker.end(number, 4)
        chunks = await stream.rest()
    assert stream.text == "one two three four"
    assert chunks[-2:] == [{"type": "finish", "finishReason": "stop"}, DONE]


async def test_no_end_of_an_edge_looks_like_the_end_of_a_reply(fleet: Fleet, worker: StreamingWorker) -> None:
    """Neither one that is killed nor one that is stopped."""
    for number, end in enumerate(("kill", "terminate")):
        edge = await asyncio.to_thread(lambda: fleet.start_edge(TRUNKLINE_DRAIN_S="0"))
        chat = UiChat(edge.address, f"c{number}")
        async with chat.send(f"cut {end}", "m1") as stream:
            await worker.begin(f"cut {end}", "one ")
            await stream.until("text-delta")
            await asyncio.to_thread(getattr(edge, end))
            with pytest.raises((httpx.RemoteProtocolError, httpx.ReadError)):
                await stream.rest()
        resumed = UiChat(fleet.edges[0].address, f"c{number}")
        async with resumed.resume() as stream:
            assert (await stream.until("text-delta"))["delta"] == "one "


async def test_slow_reader_is_reset(fleet: Fleet, worker: StreamingWorker) -> None:
    edge = await asyncio.to_thread(lambda: fleet.start_edge(TRUNKLINE_OUTBOX_BYTES="65536"))
    body = UiChat(edge.address, "slow").body("much", "m1")
    sent = httpx.Request("POST", f"http://{edge.address}/ai/demo/echo/chat", json=body)
    reader, writer = await asyncio.open_connection(*edge.address.split(":"), limit=1 << 10)
    head = "".join(f"{name}: {value}\r\n" for name, value in sent.headers.items())
    writer.write(f"POST /ai/demo/echo/chat HTTP/1.1\r\n{head}\r\n".encode() + sent.content)
    _, number = await worker.begin("much", "one ")
    writer.transport.pause_reading()  # type: ignore[attr-defined]
    for index in range(1, 400):
        await worker.add(number, index, "x" * 50_000)
    await wait_until(lambda: metric(edge, SLOW) >= 1, "it is closed as slow")
    writer.transport.resume_reading()  # type: ignore[attr-defined]
    received = bytearray()
    with suppress(ConnectionResetError):
        while more := await reader.read(1 << 16):
            received += more
    assert not received.endswith(b"0\r\n\r\n")
    writer.close()
