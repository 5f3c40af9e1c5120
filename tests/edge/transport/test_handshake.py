"""Handshakes: from a TCP connection to `connected`, and every way to fail."""

from __future__ import annotations

import asyncio

import pytest
import websockets
from trunkline.v1.frame_pb2 import ClientFrame, ServerFrame

from tests.edge.transport.edge_loopback import (
    PATIENCE_S,
    QUERY,
    accepted,
    answer,
    closed,
    connecting,
    edge_and_link,
    hears,
    parse,
    received,
    running_edge,
    upgrade,
)
from tests.support.patience import under_load


async def test_the_handshake_is_answered_with_connected_in_one_write_once_the_router_has_answered() -> None:
    async with edge_and_link() as (edge, link):
        reader, writer = await edge.raw()
        writer.write(upgrade())
        await edge.until(lambda: not link.entries.empty())
        assert reader._buffer == b""  # type: ignore[attr-defined]
        await link.accept()
        first = await asyncio.wait_for(reader.read(65536), PATIENCE_S)
        assert first.startswith(b"HTTP/1.1 101 ")
        assert b'"type":"connected"' in first
        assert edge.runtime.core.handshakes.is_empty
        writer.close()


@pytest.mark.parametrize(
    ("offered", "chosen"),
    [
        (["trunkline.v1.json"], "trunkline.v1.json"),
        (["trunkline.v1.proto"], "trunkline.v1.proto"),
        (["x", "trunkline.v1.proto"], "trunkline.v1.proto"),
        (None, None),
        (["unknown"], None),
    ],
)
async def test_a_subprotocol_that_is_known_is_chosen_and_json_spoken_otherwise(
    offered: list[str] | None, chosen: str | None
) -> None:
    async with edge_and_link() as (edge, link):
        coming = connecting(edge, subprotocols=offered)
        await link.accept()
        client = await coming
        assert client.subprotocol == chosen
        payload = await received(client)
        if chosen == "trunkline.v1.proto":
            assert ServerFrame.FromString(payload).HasField("connected")
        else:
            assert parse(payload)["type"] == "connected"
        await client.close()


@pytest.mark.parametrize("path", ["/", "/v2/connect", "/healthz", "/v1/connect/"])
async def test_a_websocket_at_another_path_is_answered_404(path: str) -> None:
    async with running_edge("127.0.0.1:1") as edge:
        with pytest.raises(websockets.InvalidStatus) as refused:
            await websockets.connect(f"ws://{edge.address}{path}", open_timeout=PATIENCE_S)
        assert refused.value.response.status_code == 404
        await edge.until(lambda: edge.runtime.core.handshakes.is_empty)


async def test_a_head_that_is_too_large_is_answered_431() -> None:
    async with running_edge("127.0.0.1:1") as edge:
        reader, writer = await edge.raw()
        writer.write(b"GET / HTTP/1.1\r\nX: " + b"x" * 17_000)
        assert (await answer(reader)).startswith(b"HTTP/1.1 431 ")
        writer.close()


async def test_a_head_that_is_slow_is_answered_408() -> None:
    async with running_edge("127.0.0.1:1", handshake_timeout_s=under_load(0.05)) as edge:
        reader, writer = await edge.raw()
        writer.write(b"GET / HTTP/1.1\r\n")
        assert (await answer(reader)).startswith(b"HTTP/1.1 408 ")
        writer.close()


async def test_a_head_that_comes_byte_by_byte_is_read() -> None:
    async with edge_and_link() as (edge, link):
        reader, writer = await edge.raw()
        for byte in upgrade():
            writer.write(bytes((byte,)))
            await asyncio.sleep(0)
        await link.accept()
        assert b"connected" in await asyncio.wait_for(reader.read(65536), PATIENCE_S)
        writer.close()


async def test_more_handshakes_than_there_may_be_are_answered_503() -> None:
    async with running_edge("127.0.0.1:1", max_handshakes=1) as edge:
        _, first = await edge.raw()
        first.write(upgrade())
        await edge.until(lambda: len(edge.runtime.core.handshakes) == 1)
        reader, second = await edge.raw()
        second.write(upgrade())
        assert (await answer(reader)).startswith(b"HTTP/1.1 503 ")
        first.close()
        await edge.until(lambda: edge.runtime.core.handshakes.has_room)
        second.close()


@pytest.mark.parametrize(
    "query", ["nonsense=1", "tenant=a&tenant=b", "conversation=x:y", "tenant=%ff", "resume=%21", "a&" * 40]
)
async def test_a_query_that_cannot_be_read_is_closed_with_4503(query: str) -> None:
    async with running_edge("127.0.0.1:1") as edge, edge.connect(query) as client:
        assert (await hears(client))["reason"] == "INVALID_ADDRESS"
        assert await closed(client) == 4503
        await edge.until(lambda: edge.runtime.core.handshakes.is_empty)


@pytest.mark.parametrize(
    "head",
    [
        b"GET /v1/connect HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n",
        b"BAD\r\nUpgrade: websocket\r\n\r\n",
        b"GET /v1/connect?tenant=\xff HTTP/1.1\r\nUpgrade: websocket\r\n\r\n",
        b"GET /v1/connect HTTP/1.1\r\nUpgrade: websocket\r\n" + b"X: y\r\n" * 200 + b"\r\n",
    ],
)
async def test_a_broken_handshake_ends_the_tcp_connection(head: bytes) -> None:
    async with running_edge("127.0.0.1:1") as edge:
        reader, writer = await edge.raw()
        writer.write(head)
        assert b" 101 " not in await answer(reader)
        assert edge.runtime.core.handshakes.is_empty
        writer.close()


async def test_a_refusal_by_the_router_is_told_as_closing_and_close() -> None:
    async with edge_and_link() as (edge, link):
        coming = connecting(edge)
        opened = await link.next("opened")
        await link.close(opened.connection, 4504, "UNKNOWN_TENANT")
        client = await coming
        assert (await hears(client))["reason"] == "UNKNOWN_TENANT"
        assert await closed(client) == 4504
        await link.next("closed")
        assert (edge.runtime.core.sessions.opening, edge.runtime.core.counts.closed) == (0, 0)


async def test_a_router_that_does_not_answer_in_time_is_a_handshake_timeout() -> None:
    async with edge_and_link(handshake_timeout_s=under_load(0.1)) as (edge, _), edge.connect() as client:
        assert (await hears(client))["reason"] == "HANDSHAKE_TIMEOUT"
        assert await closed(client) == 4004


async def test_who_connects_while_there_is_no_link_waits_and_gets_1013() -> None:
    async with (
        running_edge("127.0.0.1:1", handshake_timeout_s=under_load(0.1)) as edge,
        edge.connect() as client,
    ):
        assert (await hears(client))["reason"] == "ROUTER_UNAVAILABLE"
        assert await closed(client) == 1013
        await edge.until(lambda: not edge.runtime.core.connections)


async def test_a_resume_frame_comes_before_the_router_is_asked() -> None:
    async with edge_and_link() as (edge, link):
        async with edge.connect(f"{QUERY}&resume=frame") as client:
            assert link.entries.empty()
            await client.send('{"type":"resume","positions":[{"position":{"epoch":"e","seq":4}}]}')
            opened = await link.next("opened")
            assert opened.resume.positions[0].position.seq == 4
            await link.accept(opened=opened)
            assert (await hears(client))["type"] == "connected"
        assert edge.runtime.core.handshakes.is_empty


@pytest.mark.parametrize("first", ["{}", '{"type":"ping","id":"1"}', "x"])
async def test_another_frame_where_resume_must_come_first_is_closed_with_4503(first: str) -> None:
    async with edge_and_link() as (edge, link), edge.connect(f"{QUERY}&resume=frame") as client:
        await client.send(first)
        assert (await hears(client))["reason"] == "INVALID_ADDRESS"
        assert await closed(client) == 4503
        assert link.entries.empty()
        assert edge.runtime.core.handshakes.is_empty


async def test_no_resume_frame_in_time_is_told_in_the_clients_own_encoding() -> None:
    async with (
        edge_and_link(handshake_timeout_s=under_load(0.1)) as (edge, _),
        edge.connect(f"{QUERY}&resume=frame", subprotocols=["trunkline.v1.proto"]) as client,
    ):
        frame = ServerFrame.FromString(await received(client))
        assert frame.closing.reason == "HANDSHAKE_TIMEOUT"
        assert await closed(client) == 4004


async def test_binary_frames_are_read_and_written_by_a_proto_client() -> None:
    async with edge_and_link() as (edge, link):
        coming = connecting(edge, subprotocols=["trunkline.v1.proto"])
        number = await link.accept()
        client = await coming
        await received(client)
        frame = ClientFrame()
        frame.message.id = "m1"
        await client.send(frame.SerializeToString())
        assert (await link.next("frame")).frame.message.id == "m1"
        await link.ack(number, "m1")
        assert ServerFrame.FromString(await received(client)).ack.id == "m1"
        await client.close()


async def test_a_client_that_gives_up_while_it_waits_leaves_nothing_behind() -> None:
    async with edge_and_link(handshake_timeout_s=3600) as (edge, link):
        _, writer = await edge.raw()
        writer.write(upgrade())
        await link.next("opened")
        writer.close()
        await link.next("closed")
        await edge.until(lambda: not edge.runtime.core.connections and not edge.runtime.core.handshakes)
        assert edge.runtime.core.sessions.opening == 0
        client, _ = await accepted(edge, link)
        await client.close()
