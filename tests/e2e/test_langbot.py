"""Behaviour that clients of LangBot's WebSocket chat rely on, provided by Trunkline."""

from __future__ import annotations

import asyncio
import json
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

import pytest
from trunkline_client import Backend, Client, address, text_of

from tests.e2e.langbot_client import (
    ChatClient,
    EdgeFleet,
    RestClient,
    echo_handler,
    edges_of,
    pipeline_worker,
    plain,
)
from tests.support.processes import Process

if TYPE_CHECKING:
    from collections.abc import Iterator

JSON = {"content-type": "application/json"}
PIPELINES = [f"p{number}" for number in range(1, 30)]


@pytest.fixture(scope="module")
def edges(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EdgeFleet]:
    tenants = f"[tenants.acme]\nopen_to = 'loopback'\npipelines = {PIPELINES}\n"
    with edges_of(tmp_path_factory.mktemp("langbot"), tenants) as started:
        yield started


@pytest.fixture
def edge(edges: EdgeFleet) -> Process:
    return edges.plain


def parse_time(text: str) -> datetime:
    """Parse the time of a frame, which has microseconds and is in UTC."""
    time = datetime.fromisoformat(text)
    assert time.utcoffset() == timedelta(0)
    assert time.isoformat(timespec="microseconds") == text
    return time


async def test_the_first_frame_is_connected_with_the_session_type(edge: Process) -> None:
    async with ChatClient(edge, "p1") as person, ChatClient(edge, "p1", "group") as group:
        assert set(person.connected) == {
            "type",
            "connection_id",
            "pipeline_uuid",
            "session_type",
            "timestamp",
        }
        assert (person.connected["pipeline_uuid"], person.connected["session_type"]) == ("p1", "person")
        assert group.connected["session_type"] == "group"
        assert person.id != group.id
        parse_time(person.connected["timestamp"])


@pytest.mark.parametrize("session_type", ["channel", "Person", "%20"])
async def test_an_unknown_session_type_is_an_error_and_closes(edge: Process, session_type: str) -> None:
    chat = await ChatClient(edge, "p1", session_type).dial()
    error = {"type": "error", "message": "session_type must be person or group"}
    assert await chat.closed() == ([error], 1000)


async def test_a_ping_is_answered_with_the_time(edge: Process) -> None:
    async with ChatClient(edge, "p1") as chat:
        await chat.send({"type": "ping"})
        pong = await chat.frame()
        assert set(pong) == {"type", "timestamp"}
        assert pong["type"] == "pong"
        assert abs(parse_time(pong["timestamp"]) - datetime.now().astimezone()) < timedelta(minutes=1)


async def test_a_message_reaches_exactly_its_session(edge: Process) -> None:
    async with (
        ChatClient(edge, "p2") as ann,
        ChatClient(edge, "p2") as bob,
        ChatClient(edge, "p2", "group") as group,
        ChatClient(edge, "p3") as other,
    ):
        await ann.say("hello")
        frames = [await each.next("user_message") for each in (ann, bob)]
        assert frames[0] == frames[1]
        record = frames[0]["data"]
        assert set(frames[0]) == {"type", "session_type", "data"}
        assert frames[0]["session_type"] == "person"
        assert (record["role"], record["content"], record["is_final"]) == ("user", "hello", True)
        assert (record["connection_id"], record["message_chain"]) == (ann.id, plain("hello"))
        parse_time(record["timestamp"])
        # The first message of these is their own, sent later.
        for each in (group, other):
            await each.say("mine")
            assert (await each.frame())["data"]["content"] == "mine"


async def test_a_broadcast_reaches_both_sessions_of_a_pipeline_only(edges: EdgeFleet, edge: Process) -> None:
    rest = RestClient(edge, "p13")
    sent = {"message": "Broadcast sent successfully"}
    value = {"level": "info", "text": "maintenance ☕", "numbers": [1, 2.5, 12345678901234567890, None]}
    async with (
        ChatClient(edge, "p13") as person,
        ChatClient(edge, "p13", "group") as group,
        ChatClient(edge, "p14") as other,
    ):
        for message in ("hello", value):
            assert await rest.ok("POST", "broadcast", json={"message": message}) == sent
            for each in (person, group):
                frame = await each.frame()
                assert set(frame) == {"type", "message", "timestamp"}
                assert (frame["type"], frame["message"]) == ("broadcast", message)
                parse_time(frame["timestamp"])
        await other.say("mine")
        assert (await other.frame())["type"] == "user_message"
        assert await rest.messages() == await rest.messages("group") == []
    async with Backend(edges.router.address) as backend:
        kept = await backend.list_messages(address(tenant="acme", agent="p13", platform="langbot"))
        assert not kept.messages
    assert await RestClient(edge, "p15").ok("POST", "broadcast", json={"message": "to nobody"}) == sent
    for options in (
        {"json": {}},
        {"json": {"message": ""}},
        {"json": []},
        {"content": b"{", "headers": JSON},
        {},
    ):
        refused = await rest.call("POST", "broadcast", **options)
        assert refused == (400, {"code": -1, "msg": "message is required"})
    # A web page can send these to any site without asking.
    for kind in ("text/plain", "application/x-www-form-urlencoded"):
        for content in (b'{"message": "x"}', b""):
            headers = {"content-type": kind}
            status, body = await rest.call("POST", "broadcast", content=content, headers=headers)
            assert (status, body["code"]) == (415, -1)


async def test_no_client_can_forge_a_broadcast(edge: Process) -> None:
    async with ChatClient(edge, "p14") as ann:
        await ann.send({"type": "message", "message": [{"type": "broadcast", "message": "x"}]})
        frame = await ann.frame()
        assert frame["type"] == "user_message"
        assert frame["data"]["message_chain"] == [{"type": "broadcast", "message": "x"}]


async def test_invalid_and_unknown_frames_leave_the_connection_usable(
    edge: Process,
) -> None:
    async with ChatClient(edge, "p16") as chat:
        for text in ("{", "", "nonsense", b"\xff\xfe", "[" * 5000):
            await chat.send(text)
            assert await chat.frame() == {"type": "error", "message": "Invalid JSON format"}
        for value in ([], "text", 5, None):
            await chat.send(json.dumps(value))
            error = await chat.frame()
            assert (error["type"], error["message"]) == ("error", "The message must be a JSON object")
        for frame in ({"type": "subscribe"}, {"type": None}, {"type": []}, {"type": "authenticate"}):
            await chat.send(frame)
        await chat.send({"type": "message", "message": "no list"})
        assert (await chat.frame())["type"] == "error"
        await chat.send(b'{"type":"ping"}')
        assert (await chat.frame())["type"] == "pong"


async def test_disconnect_closes_with_1000(edge: Process) -> None:
    async with ChatClient(edge, "p16") as chat:
        await chat.send({"type": "disconnect"})
        assert await chat.closed() == ([], 1000)


async def test_a_frame_without_type_is_a_message_and_one_without_chain_is_an_error(
    edges: EdgeFleet, edge: Process
) -> None:
    async with pipeline_worker(edges.router, ["p17"], echo_handler), ChatClient(edge, "p17") as chat:
        await chat.send({"message": plain("no type")})
        assert (await chat.next("user_message"))["data"]["content"] == "no type"
        assert (await chat.reply())[-1]["content"] == "re: no type"
        await chat.send({"type": "message"})
        record = (await chat.next("user_message"))["data"]
        assert (record["content"], record["message_chain"]) == ("", [])
        assert (await chat.reply())[-1]["content"] == "re: "
        await chat.send(b'{"message":[{"type":"Plain","text":"binary"}]}')
        assert (await chat.next("user_message"))["data"]["content"] == "binary"


async def test_twenty_clients_work_concurrently(edges: EdgeFleet, edge: Process) -> None:
    async def one(number: int) -> None:
        async with ChatClient(edge, "p18", "group") as chat:
            await chat.say(f"from {number}")
            record = await chat.wait_for_record(f"from {number}")
            assert record["connection_id"] == chat.id
            while (await chat.reply())[-1]["content"] != f"re: from {number}":
                pass

    async with pipeline_worker(edges.router, ["p18"], echo_handler):
        await asyncio.gather(*(one(number) for number in range(20)))
    listed = await RestClient(edge, "p18").messages("group")
    assert len(listed) == 40
    assert len({record["connection_id"] for record in listed} - {""}) == 20


async def test_a_backend_pushes_to_one_connection_or_to_a_whole_session(
    edges: EdgeFleet, edge: Process
) -> None:
    async with (
        Backend(edges.router.address) as backend,
        ChatClient(edge, "p19", "group") as ann,
        ChatClient(edge, "p19", "group") as bob,
    ):
        pushed = await backend.broadcast(address(tenant="acme", connection=ann.id), "only you")
        assert pushed.connections == 1
        frame = await ann.frame()
        assert (frame["type"], frame["session_type"]) == ("response", "group")
        record = frame["data"]
        assert (record["content"], record["role"], record["is_final"]) == ("only you", "assistant", True)
        session = address(tenant="acme", agent="p19", platform="langbot", conversation="group:langbot")
        await backend.broadcast(session, "all of you")
        for each in (ann, bob):
            frame = await each.frame()
            assert (frame["type"], frame["data"]["content"]) == ("response", "all of you")
        # Ids from other logs are not ids of the conversation.
        platform = address(tenant="acme", agent="p19", platform="langbot")
        assert (await backend.broadcast(platform, "all of the pipeline")).position.seq == 1
        other = (await ann.next("response"))["data"]
        assert (frame["data"]["id"], other["content"]) == (1, "all of the pipeline")
        assert 10**15 < record["id"] < other["id"] < 2**53


async def test_a_native_client_shares_the_conversation(edges: EdgeFleet, edge: Process) -> None:
    place = {"tenant": "acme", "agent": "p20", "platform": "langbot", "conversation": "person:langbot"}
    async with (
        Backend(edges.router.address) as backend,
        pipeline_worker(edges.router, ["p20"], echo_handler),
        ChatClient(edge, "p20") as chat,
        Client(f"ws://{edge.address}", **place, user="nat") as native,
    ):
        await chat.say("from LangBot's client")
        events = aiter(native)
        texts = [text_of(await anext(events)) for _ in range(2)]
        assert texts == ["from LangBot's client", "re: from LangBot's client"]
        await chat.reply()
        ack = await native.send("from the native client")
        record = (await chat.next("user_message"))["data"]
        assert (record["content"], record["connection_id"]) == ("from the native client", "")
        await chat.reply()
        await native.edit(ack.message_id, "edited")
        edited = (await chat.next("user_message"))["data"]
        assert (edited["id"], edited["content"]) == (record["id"], "edited")
        await native.recall(ack.message_id)
        assert record["id"] not in [each["id"] for each in await RestClient(edge, "p20").messages()]
        await chat.say("still there")
        assert (await chat.frame())["data"]["content"] == "still there"
        reply = (await chat.reply())[-1]
        logged = await backend.list_messages(address(**place))
        assert logged.messages[-1].position.seq == reply["id"]
