"""Frames on an accepted WebSocket, and its end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from structlog.testing import capture_logs
from websockets.frames import Frame, Opcode

from tests.edge.transport.edge_loopback import (
    PATIENCE_S,
    Edge,
    ScriptedLink,
    accepted,
    closed,
    edge_and_link,
    hears,
    reset,
    say,
    upgrade,
)


@asynccontextmanager
async def a_client(**settings: Any) -> AsyncIterator[tuple[Edge, ScriptedLink, Any, int]]:
    async with edge_and_link(**settings) as (edge, link):
        client, number = await accepted(edge, link)
        try:
            yield edge, link, client, number
        finally:
            if client.close_code is None:
                await client.close()


def masked(opcode: Opcode, data: bytes, fin: bool = True) -> bytes:
    return Frame(opcode, data, fin).serialize(mask=True)


async def test_a_message_goes_to_the_router_and_its_ack_comes_back() -> None:
    async with a_client() as (_, link, client, number):
        await client.send(say("m1"))
        frame = await link.next("frame")
        assert (frame.connection, frame.frame.message.id) == (number, "m1")
        await link.ack(number, "m1")
        await link.publish(2)
        assert await hears(client) == {"type": "ack", "id": "m1"}
        assert (await hears(client))["position"]["seq"] == 2


async def test_json_may_come_in_fragments_and_as_binary() -> None:
    async with a_client() as (_, link, client, _):
        text = say("m1", "x" * 1000)
        await client.send([text[:1], text[1:500], "", text[500:]])
        assert (await link.next("frame")).frame.message.id == "m1"
        await client.send(say("m2").encode())
        assert (await link.next("frame")).frame.message.id == "m2"


async def test_a_websocket_ping_between_fragments_is_answered() -> None:
    async with edge_and_link() as (edge, link):
        reader, writer = await edge.raw()
        writer.write(upgrade())
        await link.accept()
        await reader.readuntil(b"\r\n\r\n")
        text = b'{"type":"ping","id":"p1"}'
        writer.write(masked(Opcode.TEXT, text[:5], fin=False))
        writer.write(masked(Opcode.PING, b"hi"))
        writer.write(masked(Opcode.CONT, text[5:]))
        seen = await asyncio.wait_for(reader.readuntil(b'{"type":"pong","id":"p1"}'), PATIENCE_S)
        assert b"\x8a\x02hi" in seen
        writer.close()


async def test_pings_of_both_kinds_are_answered() -> None:
    async with a_client() as (_, _, client, _):
        await asyncio.wait_for(await client.ping(), PATIENCE_S)
        await client.send('{"type":"ping","id":"p1"}')
        assert await hears(client) == {"type": "pong", "id": "p1"}


@pytest.mark.parametrize("payload", [b"no JSON", b"[]", b"{}", b'{"type":"nope","id":"x"}', b""])
async def test_what_cannot_be_read_is_answered_and_the_client_goes_on(payload: bytes) -> None:
    async with a_client() as (_, _, client, _):
        await client.send(payload, text=True)
        assert (await hears(client))["type"] == "error"
        await client.send('{"type":"ping","id":"p1"}')
        assert (await hears(client))["type"] == "pong"


@pytest.mark.parametrize("whole", [True, False], ids=["whole", "in fragments"])
async def test_a_frame_over_the_limit_is_told_and_closed_with_1009(whole: bool) -> None:
    async with a_client(frame_bytes=4096) as (edge, link, client, number):
        await client.send('{"type":"ping","id":"p1"}')
        text = "x" * 4_000_000
        sending = asyncio.ensure_future(client.send(text if whole else [text[:4000], text[4000:]]))
        assert (await hears(client))["type"] == "pong"
        closing = await hears(client)
        assert (closing["reason"], closing["code"]) == ("FRAME_TOO_LARGE", 1009)
        assert await closed(client) == 1009
        assert (await link.next("closed")).connection == number
        await asyncio.gather(sending, return_exceptions=True)
        assert not edge.runtime.core.connections


async def test_who_reads_only_after_it_has_sent_far_too_much_is_still_told_why() -> None:
    """To close the TCP connection while it sends would reset it, and lose the last frames."""
    async with edge_and_link(frame_bytes=4096) as (edge, link):
        reader, writer = await edge.raw()
        writer.write(upgrade())
        await link.accept()
        await reader.readuntil(b"\r\n\r\n")
        writer.write(masked(Opcode.TEXT, b"x" * 8_000_000))
        await asyncio.wait_for(writer.drain(), PATIENCE_S)
        data = await asyncio.wait_for(reader.read(), PATIENCE_S)
        assert b"FRAME_TOO_LARGE" in data
        assert b"\x03\xf1" in data
        writer.close()


async def test_a_frame_of_exactly_the_limit_is_read() -> None:
    async with a_client(frame_bytes=1024) as (_, link, client, _):
        text = say("m1", "")
        await client.send(say("m1", "x" * (1024 - len(text))))
        assert (await link.next("frame")).frame.message.id == "m1"


@pytest.mark.parametrize(
    "broken",
    [b"\x81\x02hi", b"\xf1\x80\x00\x00\x00\x00", b"\x83\x80\x00\x00\x00\x00", masked(Opcode.CONT, b"x")],
    ids=["unmasked", "reserved bits", "reserved opcode", "continues nothing"],
)
async def test_a_broken_websocket_frame_ends_the_connection_with_1002(broken: bytes) -> None:
    async with a_client() as (edge, link, client, number):
        with capture_logs() as lines:
            client.transport.write(broken)
            assert await closed(client) == 1002
            assert (await link.next("closed")).connection == number
        assert not edge.runtime.core.connections
        assert edge.runtime.core.counts.protocol_errors == 1
        [line] = [line for line in lines if line["event"] == "a client broke the protocol"]
        assert line["problem"].startswith("WebSocket: ")


async def test_disconnect_is_closed_with_1000() -> None:
    async with a_client() as (edge, link, client, _):
        await client.send('{"type":"disconnect"}')
        assert (await hears(client))["reason"] == "DISCONNECTED"
        assert await closed(client) == 1000
        await link.next("closed")
        assert edge.runtime.core.counts.closed == 1


@pytest.mark.parametrize(
    ("code", "reason"), [(1011, "INTERNAL"), (4003, "POSITION_LOST"), (4501, "CLOSED_BY_BACKEND")]
)
async def test_a_close_by_the_router_keeps_its_code(code: int, reason: str) -> None:
    async with a_client() as (_, link, client, number):
        await link.close(number, code, reason)
        assert (await hears(client))["reason"] == reason
        assert await closed(client) == code
        assert client.close_reason == reason


async def test_nothing_is_written_after_the_close_that_a_client_asked_for() -> None:
    """Even if the client still has megabytes to take, so that its TCP connection stays."""
    async with edge_and_link() as (edge, link):
        reader, writer = await edge.raw()
        writer.write(upgrade())
        await link.accept()
        await reader.readuntil(b"\r\n\r\n")
        for seq in range(1, 9):
            await link.publish(seq, "x" * 200_000)
        writer.write(masked(Opcode.CLOSE, b"\x03\xe8"))
        await link.next("closed")
        await link.publish(9, "after the close")
        data = await asyncio.wait_for(reader.read(), PATIENCE_S)
        assert data.endswith(b"\x88\x02\x03\xe8")
        assert b"after the close" not in data
        writer.close()


@pytest.mark.parametrize("how", ["reset", "end of stream", "close"])
async def test_however_a_client_goes_it_is_forgotten(how: str) -> None:
    async with edge_and_link() as (edge, link):
        reader, writer = await edge.raw()
        writer.write(upgrade())
        number = await link.accept()
        await reader.readuntil(b"\r\n\r\n")
        if how == "reset":
            reset(writer)
        elif how == "end of stream":
            writer.write_eof()
        else:
            writer.write(masked(Opcode.CLOSE, b""))
        assert (await link.next("closed")).connection == number
        # Late frames for it are no error either.
        await link.ack(number, "m1")
        await link.publish(1)
        core, runtime = edge.runtime.core, edge.runtime
        assert (core.connections, core.backpressure.backlogged) == ({}, [])
        assert len(core.handshakes) == len(core.sessions.heartbeats) == 0
        assert runtime._handshakes == {}
        writer.close()


async def test_many_clients_reset_at_once_leave_nothing() -> None:
    async with edge_and_link() as (edge, link):
        writers = []
        for number in range(30):
            reader, writer = await edge.raw()
            writer.write(upgrade())
            await link.accept(topic=0 if number else 1)
            await reader.readuntil(b"\r\n\r\n")
            writers.append(writer)
        for writer in writers:
            reset(writer)
        for seq in range(1, 20):
            await link.publish(seq, "x" * 1000)
        await edge.until(lambda: not edge.runtime.core.connections)


async def test_a_client_at_its_bound_of_requests_is_read_again_after_an_answer() -> None:
    async with a_client(unanswered=1) as (edge, link, client, number):
        await client.send(say("m1"))
        await link.next("frame")
        await client.send(say("m2"))
        await edge.until(lambda: edge.runtime.core.connections[number].reading_paused)
        assert link.entries.empty()
        await link.ack(number, "m1")
        assert (await link.next("frame")).frame.message.id == "m2"
        await link.ack(number, "m2")


async def test_a_client_that_is_held_completes_its_closing_handshake() -> None:
    async with a_client(unanswered=1) as (edge, link, client, number):
        await client.send(say("m1"))
        await edge.until(lambda: edge.runtime.core.connections[number].reading_paused)
        await link.close(number, 4501, "CLOSED_BY_BACKEND")
        assert await closed(client) == 4501
        await edge.until(lambda: not edge.runtime.core.connections)


async def test_a_client_that_sends_too_much_and_closes_is_forgotten_at_once() -> None:
    async with a_client(unanswered=1) as (edge, link, client, number):
        frames = [masked(Opcode.TEXT, say(f"m{n}").encode()) for n in range(3)]
        client.transport.write(b"".join([*frames, masked(Opcode.CLOSE, b"")]))
        await edge.until(lambda: not edge.runtime.core.connections)
        for _ in frames:
            await link.next("frame")
        assert (await link.next("closed")).connection == number


async def test_clients_are_pinged_and_the_silent_ones_closed() -> None:
    async with edge_and_link(heartbeat_s=2) as (edge, link):
        alive, number = await accepted(edge, link)
        reader, writer = await edge.raw()
        writer.write(upgrade())
        silent = await link.accept(topic=0)
        data = await asyncio.wait_for(reader.read(), PATIENCE_S)
        assert data.count(b"\x89\x00") == 2
        assert b"HEARTBEAT_LOST" in data
        assert list(edge.runtime.core.connections) == [number]
        assert (await link.next("closed")).connection == silent
        writer.close()
        await alive.close()


async def test_a_compressing_client_is_answered_without_compression() -> None:
    async with edge_and_link() as (edge, link):
        client, _ = await accepted(edge, link, compression="deflate")
        assert client.protocol.extensions == []
        await client.close()
