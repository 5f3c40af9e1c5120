"""Behaviour that clients of maim_message's tenant protocol rely on, provided by Trunkline."""

from __future__ import annotations

import asyncio
import json
import socket
import struct
import sys
from typing import TYPE_CHECKING

import pytest
from trunkline.v1.message_pb2 import ROLE_USER, Message
from trunkline_client import Worker
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus

from tests.e2e.grpc_backend import GrpcBackend, text_of
from tests.e2e.maim_client import (
    TIMEOUT_S,
    MaimClient,
    broadcast,
    chat,
    http,
    maim_fleet,
    next_json_line,
    stock_client,
)
from tests.e2e.polling import wait_until
from tests.support.patience import under_load

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.e2e.fleet import Fleet
    from tests.support.processes import Process


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    with maim_fleet(tmp_path_factory.mktemp("maim")) as started:
        yield started


@pytest.fixture
def backend(fleet: Fleet) -> Iterator[GrpcBackend]:
    with GrpcBackend(fleet.router.address) as calling:
        yield calling


def logged_json(backend: GrpcBackend, place: str) -> list[str]:
    """Return the users' messages in the log of a place, as JSON texts."""
    platform = place.rpartition("/")[2]
    messages = backend.messages(f"{place}/group:{platform}")
    return [each.parts[-1].custom.json for each in messages if each.author.role == ROLE_USER]


@pytest.mark.parametrize("place", ["demo/raw", "demo/other/raw"])
def test_the_confirmation_is_written_together_with_the_handshake(edge: Process, place: str) -> None:
    host, port = edge.address.split(":")
    for _ in range(20):
        with socket.create_connection((host, int(port)), timeout=TIMEOUT_S) as client:
            key = "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13"
            upgrade = "Host: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket"
            client.sendall(f"GET /ws/{place} HTTP/1.1\r\n{upgrade}\r\n{key}\r\n\r\n".encode())
            head, _, frame = client.recv(65536).partition(b"\r\n\r\n")
            if sys.platform == "linux":
                # tcpi_data_segs_in: two writes would be two segments, even if one `recv` returns both.
                info = client.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256)
                assert struct.unpack_from("I", info, 152) == (1,)
        assert head.startswith(b"HTTP/1.1 101 ")
        assert frame[0] == 0x81
        confirmed = json.loads(frame[4:] if frame[1] == 126 else frame[2:])
        assert confirmed["type"] == "connection_confirmed"
        assert confirmed["connection_uuid"]
        assert (confirmed["tenant_id"], confirmed["platform"]) == ("demo", "raw")
        assert confirmed.get("agent_id") == ("other" if "other" in place else None)
        assert isinstance(confirmed["timestamp"], float)


@pytest.mark.parametrize("path", ["/ws/demo", "/ws/demo/", "/ws//qq", "/ws/demo/a/b/c"])
async def test_a_path_of_another_length_is_rejected_before_the_upgrade(edge: Process, path: str) -> None:
    with pytest.raises(InvalidStatus) as refused:
        await connect(f"ws://{edge.address}{path}")
    assert refused.value.response.status_code == 404


@pytest.mark.parametrize("at_a_time", ["1", "25"])
async def test_fifty_of_fifty_stock_clients_can_send_and_receive(edge: Process, at_a_time: str) -> None:
    with stock_client("connects", f"ws://{edge.address}", "50", at_a_time) as client:
        total = await next_json_line(client)
    assert total["connected"] == total["heard"] == 50
    assert total["resolved"] == (50 if at_a_time == "25" else 0)


async def test_a_confirmed_send_of_the_stock_client_succeeds(edge: Process) -> None:
    with stock_client("connects", f"ws://{edge.address}", "4", "2") as client:
        total = await next_json_line(client)
    assert total["resolved"] == 4
    # The client polls every 0.1 s. On the old server it gave up after 10 s.
    assert total["slowest"] < under_load(5)


async def test_pushed_frames_contain_type_tenant_platform_and_id(edge: Process) -> None:
    async with MaimClient(edge, "demo/fields") as flat, MaimClient(edge, "demo/echo/fields") as deep:
        assert (await flat.say("fields-1", "hello"))["success"]
        for adapter in (flat, deep):
            reply = await adapter.next("chat_response")
            assert (reply["tenant_id"], reply["platform"]) == ("demo", "fields")
            assert reply["message_id"].endswith("@demo")
        await broadcast(edge, "demo/fields", {"no": "type"})
        for adapter, agent in ((flat, None), (deep, "echo")):
            push = await adapter.next("message")
            assert {"tenant_id", "platform", "message_id", "broadcast_timestamp"} < push.keys()
            assert push.get("agent_id") == agent
        assert [frame["type"] for frame in await deep.frames_so_far()] == []


async def test_pings_and_heartbeats_are_answered_and_not_logged(
    fleet: Fleet, edge: Process, backend: GrpcBackend
) -> None:
    async with MaimClient(edge, "demo/beats-text") as adapter:
        await adapter.send({"type": "ping"})
        assert await adapter.receive() == {"type": "pong"}
        await adapter.send({"type": "heartbeat", "timestamp": 12.5})
        answer = await adapter.receive()
        assert answer["type"] == "heartbeat_response"
        assert isinstance(answer["timestamp"], float)
        await adapter.send({"type": "heartbeat_response", "timestamp": 12.5})
        await adapter.send({"type": "auth", "token": "nobody asked"})
        await adapter.say("beats-1", "hello")
    assert [json.loads(text)["message_id"] for text in logged_json(backend, "demo/echo/beats-text")] == [
        "beats-1"
    ]
    quick = fleet.start_edge(TRUNKLINE_HEARTBEAT_S="1")
    async with MaimClient(quick, "demo/echo/beats") as adapter:
        beat = json.loads(await adapter.text())
        assert beat["type"] == "heartbeat"
        assert isinstance(beat["timestamp"], float)


async def test_invalid_json_is_an_error_and_the_connection_survives(edge: Process) -> None:
    async with MaimClient(edge, "demo/invalid") as adapter:
        for payload, code, text in (
            ("no json", "invalid_json", "Invalid JSON format"),
            ("", "invalid_json", "Invalid JSON format"),
            ("[]", "internal_error", "a JSON object is expected"),
            ("7", "internal_error", "a JSON object is expected"),
            (b'{"type":"ping"}', "internal_error", "binary frames are not supported; send JSON as text"),
        ):
            await adapter.ws.send(payload)
            error = await adapter.receive()
            assert error.pop("timestamp")
            assert error == {"type": "error", "error_code": code, "error_message": text}
        assert (await adapter.say("valid-1", "still here"))["success"]


async def test_equal_ids_in_different_tenants_agents_and_platforms_are_separate(
    edge: Process, backend: GrpcBackend
) -> None:
    places = ["demo/echo/same", "acme/echo/same", "demo/other/same", "demo/echo/same2"]
    adapters = [MaimClient(edge, place) for place in places]
    async with adapters[0], adapters[1], adapters[2], adapters[3]:
        for place, adapter in zip(places, adapters, strict=True):
            assert (await adapter.say("same-1", f"from {place}"))["success"]
            answer = await broadcast(edge, place, {"type": "notice", "for": place})
            assert answer["success_count"] == 1
            assert backend.broadcast(place, f"words for {place}").connections == 1
        for place, adapter in zip(places, adapters, strict=True):
            notice = await adapter.next("notice")
            assert notice["for"] == place
            words = await adapter.next("chat_response", reply_to=None)
            assert words["data"]["response"] == f"words for {place}"
            # Only agent `echo` of `demo` has a worker.
            if place.startswith("demo/echo/"):
                assert (await adapter.next("chat_response"))["data"]["response"] == f"re: from {place}"
            assert await adapter.frames_so_far() == []
            assert [json.loads(text)["message_segment"]["data"] for text in logged_json(backend, place)] == [
                f"from {place}"
            ]


async def test_a_message_sent_twice_is_stored_once_with_the_same_response(
    edge: Process, backend: GrpcBackend
) -> None:
    async with MaimClient(edge, "demo/retries") as adapter:
        first = await adapter.say("retry-1", "once")
        assert await adapter.say("retry-1", "once") == first
        reply = await adapter.next("chat_response")
        assert reply["reply_to"] == first["server_message_id"]
        other = await adapter.say("retry-1", "other words under the same id")
        assert (other["success"], other["error_code"]) == (False, "IDEMPOTENCY_MISMATCH")
    async with MaimClient(edge, "demo/retries") as adapter:
        assert await adapter.say("retry-1", "once") == first
    assert len(logged_json(backend, "demo/echo/retries")) == 1


async def test_messages_without_an_id_are_all_accepted(edge: Process, backend: GrpcBackend) -> None:
    async with MaimClient(edge, "demo/noid") as adapter:
        for _ in range(3):
            await adapter.send(chat("the same words"))
        results = [await adapter.next("message_result") for _ in range(3)]
        assert all(result["success"] for result in results)
        assert len({result["message_id"] for result in results}) == 3
    assert logged_json(backend, "demo/echo/noid") == [json.dumps(chat("the same words"))] * 3


async def test_an_acknowledged_message_is_logged_with_the_exact_text_of_the_client(
    edge: Process, backend: GrpcBackend
) -> None:
    odd = (
        '{"message_id" : "exact-1",  "type":"chat", "n":1.0, "big":12345678901234567890123, '
        '"t":"\\u00e9é", "raw_message":"plain"}'
    )
    async with MaimClient(edge, "demo/exact") as adapter:
        await adapter.ws.send(odd)
        assert (await adapter.next("message_result"))["success"]
        assert logged_json(backend, "demo/echo/exact") == [odd]
        reply = await adapter.next("chat_response")
        assert reply["data"]["response"] == "re: plain"


async def test_the_threaded_client_connects_sends_and_receives(edge: Process) -> None:
    with stock_client("threaded", f"ws://{edge.address}") as client:
        lines = [await next_json_line(client) for _ in range(4)]
    kinds = {line["type"]: line for line in lines}
    assert kinds["connected"]["ok"]
    assert kinds["chat_response"]["data"]["response"] == "re: hello"
    # The client does not know this frame and passes it to its callbacks like a message.
    assert kinds["connection_confirmed"]["platform"] == "threaded"


async def test_a_message_of_ten_mebibytes_reaches_the_worker(fleet: Fleet, edge: Process) -> None:
    picture = "A" * (10 * 1024 * 1024 - 300)
    frame = {**chat("look"), "message_segment": {"type": "image", "data": picture}, "raw_message": "look"}
    # The client library accepts large messages: a bare gRPC channel is limited to 4 MiB.
    worker = Worker(fleet.router.address, tenant="demo", agents=["big"])

    def answer(message: Message) -> str:
        whole = json.loads(message.parts[-1].custom.json)
        return f"{text_of(message)}: {whole['message_segment']['data'] == picture}"

    serving = asyncio.create_task(worker.run(answer))
    async with MaimClient(edge, "demo/big/large") as adapter:
        await adapter.send({**frame, "message_id": "large-1"})
        assert (await adapter.next("message_result"))["success"]
        reply = await adapter.next("chat_response")
        assert reply["data"]["response"] == "look: True"
    await worker.drain(5)
    await serving


async def test_a_streamed_reply_arrives_once_and_complete(fleet: Fleet, edge: Process) -> None:
    worker = Worker(fleet.router.address, tenant="demo", agents=["writer"])

    async def answer(message: Message) -> None:
        async with worker.reply(message) as out:
            for word in ("one ", "two ", "three"):
                await out.write(word)

    serving = asyncio.create_task(worker.run(answer))
    async with MaimClient(edge, "demo/writer/streamed") as adapter:
        await adapter.say("streamed-1", "hello")
        assert (await adapter.next("chat_response"))["data"]["response"] == "one two three"
        assert await adapter.frames_so_far() == []
    await worker.drain(5)
    await serving


async def test_messages_of_other_connections_are_not_delivered_but_replies_are(
    edge: Process, backend: GrpcBackend
) -> None:
    async with MaimClient(edge, "demo/two") as one, MaimClient(edge, "demo/two") as two:
        await wait_until(lambda: backend.count("demo/echo/two") == (2, 1), "both are connected")
        await one.say("two-1", "hello")
        for adapter in (one, two):
            assert (await adapter.next("chat_response"))["data"]["response"] == "re: hello"
            assert await adapter.frames_so_far() == []


async def test_a_failure_reported_by_a_client_reaches_the_agent_and_the_result_query(
    edge: Process, backend: GrpcBackend
) -> None:
    async with MaimClient(edge, "demo/report") as adapter:
        pushed = await broadcast(edge, "demo/report", {"type": "notice"})
        report = {
            "type": "message_result",
            "message_id": pushed["message_id"],
            "success": False,
            "error_code": "muted",
            "error_message": "the group is muted",
        }
        await adapter.send({**report, "success": True})
        await adapter.send(report)
        await adapter.next("message_result")
        path = f"/api/v1/message/{pushed['message_id']}/result"
        status, result = await http(edge, "GET", path)
        assert status == 200
        assert (result["success"], result["error_code"]) == (False, "muted")
    assert logged_json(backend, "demo/echo/report") == [json.dumps(report)]
    last = backend.messages("demo/echo/report/group:report")[0]
    assert last.parts[-1].custom.name == "maim.message_result"
    assert text_of(last) == ""
