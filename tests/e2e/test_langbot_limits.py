"""Limits for LangBot's clients, and clients that stop reading."""

from __future__ import annotations

import asyncio
import base64
from contextlib import AsyncExitStack
from datetime import datetime
from typing import TYPE_CHECKING, Any

import pytest
from trunkline.v1 import catalogue
from trunkline.v1.message_pb2 import MediaPart, Part
from trunkline_client import Reply

from tests.e2e.fleet import metric
from tests.e2e.langbot_client import ChatClient, EdgeFleet, RestClient, edges_of, pipeline_worker
from tests.e2e.polling import wait_until
from tests.e2e.rooms import closed_by
from tests.support.patience import patient
from tests.support.processes import Process

if TYPE_CHECKING:
    from collections.abc import Iterator

    from trunkline_client import Message

TENANTS = """
[tenants.acme]
open_to = "loopback"
pipelines = ["bot1", "bot2", "bot3", "bot4"]
[tenants.counted]
open_to = "loopback"
pipelines = ["c1", "c2"]
"""
KIB = 1024


@pytest.fixture(scope="module")
def edges(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EdgeFleet]:
    with edges_of(tmp_path_factory.mktemp("langbot"), TENANTS) as started:
        yield started


async def wait_until_listed(edge: Process, pipeline: str, ids: set[str]) -> dict[str, Any]:
    """Wait until /connections lists these; return its response."""
    async with asyncio.timeout(patient(10)):
        while True:
            found = await RestClient(edge, pipeline).connections()
            if {each["connection_id"] for each in found["connections"]} == ids:
                return found


async def test_connections_are_counted_and_listed_while_they_exist(edges: EdgeFleet) -> None:
    edge = edges.plain
    async with AsyncExitStack() as stack:
        ann, bob, _, cat = [
            await stack.enter_async_context(ChatClient(edge, *place))
            for place in (("c1",), ("c1", "group"), ("c2",), ("c1",))
        ]
        found = await RestClient(edge, "c1").connections()
        assert found["stats"] == {
            "total_connections": 4,
            "pipelines": 2,
            "connections_by_pipeline": {"c1": 3, "c2": 1},
            "connections_by_session_type": {"person": 3, "group": 1},
        }
        by_id = {each["connection_id"]: each for each in found["connections"]}
        assert set(by_id) == {ann.id, bob.id, cat.id}
        assert (by_id[bob.id]["session_type"], by_id[bob.id]["is_active"]) == ("group", True)
        keys = {"connection_id", "session_type", "created_at", "last_active", "is_active"}
        assert set(by_id[ann.id]) == keys
        created, active = (datetime.fromisoformat(by_id[ann.id][k]) for k in ("created_at", "last_active"))
        assert created <= active
        cat.ws.transport.abort()
        assert (await wait_until_listed(edge, "c1", {ann.id, bob.id}))["stats"]["total_connections"] == 3


async def test_a_client_that_does_not_read_is_closed_without_delaying_others(edges: EdgeFleet) -> None:
    edge = edges.start(TRUNKLINE_OUTBOX_BYTES=str(64 * KIB))
    async with (
        ChatClient(edge, "bot1") as ann,
        ChatClient(edge, "bot1") as bob,
        ChatClient(edge, "bot1", small_buffers=True) as stuck,
    ):
        sent = 0
        while not metric(edge, "trunkline_edge_slow_consumers_total") and sent < 500:
            sent += 1
            text = f"{sent} " + "x" * 8000
            await ann.say(text)
            await bob.wait_for_record(text)
            await ann.wait_for_record(text)
        assert sent > 8, "it was not closed at once"
        frames, code = await stuck.closed()
        assert code == 1013
        assert frames[-1]["type"] == "error"
        numbers = [int(frame["data"]["content"].split()[0]) for frame in frames[:-1]]
        assert numbers == list(range(1, len(numbers) + 1))


async def test_limits_of_connections_and_frames_are_configurable(edges: EdgeFleet) -> None:
    limits = {"TRUNKLINE_MAX_CONNECTIONS": "2", "TRUNKLINE_LARGE_FRAME_BYTES": str(8 * KIB)}
    edge = edges.start(**limits, TRUNKLINE_FRAME_BYTES="1024")
    async with ChatClient(edge, "bot2") as ann, ChatClient(edge, "bot2") as bob:
        frames, code = await (await ChatClient(edge, "bot2").dial()).closed()
        assert [frame["type"] for frame in frames] == ["error"]
        assert code == 1013
        await ann.say("x" * 7 * KIB)
        await bob.wait_for_record("x" * 7 * KIB)
        await ann.say("x" * 9 * KIB)
        frames, code = await ann.closed()
        assert frames[-1] == {"type": "error", "message": catalogue.FRAME_TOO_LARGE.sentence(limit=8192)}
        assert code == 1009
        await bob.say("still here")
        await bob.wait_for_record("still here")


async def test_a_peer_that_does_not_answer_pings_is_dropped(edges: EdgeFleet) -> None:
    edge = edges.start(TRUNKLINE_HEARTBEAT_S="1")
    async with ChatClient(edge, "c2") as alive, ChatClient(edge, "c2") as dead:
        dead.ws.transport.pause_reading()
        await wait_until(lambda: closed_by(edge).get("HEARTBEAT_LOST"), "the dead one is dropped")
        await alive.send({"type": "ping"})
        assert (await alive.frame())["type"] == "pong"
        dead.ws.transport.resume_reading()
        frames, code = await dead.closed()
        assert ([frame["type"] for frame in frames], code) == (["error"], 1013)
        await wait_until_listed(edge, "c2", {alive.id})


PNG = bytes(range(256)) * 4
PICTURE = {"type": "Image", "base64": "data:image/png;base64," + base64.b64encode(PNG).decode()}


async def test_pictures_pass_in_both_directions_and_unknown_parts_are_preserved(edges: EdgeFleet) -> None:
    heard: list[Message] = []

    def answer(message: Message) -> Reply:
        heard.append(message)
        picture = Part(image=MediaPart(url="https://x.test/a.png", mime_type="image/png"))
        return Reply(parts=[picture])

    chain = [
        PICTURE | {"image_id": "", "url": None},
        {"type": "Voice", "path": "storage/key", "length": 3},
        {"type": "Teleport", "to": {"x": 1.5}},
        {"type": "At", "target": 10001, "display": "Ann"},
        "bare text",
    ]
    edge = edges.plain
    async with pipeline_worker(edges.router, ["bot3"], lambda _: answer), ChatClient(edge, "bot3") as chat:
        await chat.send({"type": "message", "message": chain})
        record = (await chat.next("user_message"))["data"]
        assert record["message_chain"] == chain
        unknown = "Unknown Message: Unknown component type: Teleport"
        assert record["content"] == f"[Image][Voice]{unknown}@Annbare text"
        reply = (await chat.reply())[-1]
        assert reply["message_chain"] == [
            {"type": "Image", "url": "https://x.test/a.png", "mime_type": "image/png"}
        ]
        assert (heard[0].parts[0].image.inline, heard[0].parts[0].image.mime_type) == (PNG, "image/png")
        assert await RestClient(edge, "bot3").messages() == [record, reply]


async def test_a_large_picture_is_accepted_and_one_over_the_limit_is_an_error(edges: EdgeFleet) -> None:
    async with ChatClient(edges.plain, "bot4") as chat:
        for size in (6 << 20, (8 << 20) + 1):
            data = base64.b64encode(bytes(size)).decode()
            chain = [{"type": "Image", "base64": f"data:image/png;base64,{data}"}]
            await chat.send({"type": "message", "message": chain})
            frame = await chat.frame()
            if size < 8 << 20:
                assert frame["data"]["message_chain"] == chain
            else:
                text = f"Image.base64: has {size} bytes; at most 8388608 are allowed"
                assert frame == {"type": "error", "message": text}
        await chat.say("still there")
        await chat.wait_for_record("still there")
