"""Clients with TLS: everything works as without, and broken handshakes delay nobody."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import certs
import pytest
import trunkline_edge.transport.tls_transport as edge_tls
import trunkline_runtime.certificates
from structlog.testing import capture_logs
from trunkline.v1 import catalogue
from trunkline.v1.edge_service_pb2 import RouterEntry
from websockets.frames import Frame, Opcode

from tests.edge.transport.edge_loopback import (
    PATIENCE_S,
    QUERY,
    Edge,
    ScriptedLink,
    accepted,
    answer,
    closed,
    edge_and_link,
    hears,
    reset,
    say,
    upgrade,
)
from tests.support.certificates import Certificates, serial_of
from tests.support.patience import under_load

HEALTH = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"
TEXT = "x" * 50_000


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return Certificates(tmp_path_factory.mktemp("certs"))


@asynccontextmanager
async def secure(ours: Certificates, **settings: Any) -> AsyncIterator[tuple[Edge, ScriptedLink]]:
    """Run a linked edge with TLS, for clients that trust `ours`."""
    files = {"tls_cert": ours.edge, "tls_key": certs.key_of(ours.edge)}
    async with edge_and_link(**files, **settings) as (edge, link):
        edge.trusting = ours.trusting
        yield edge, link


class Blocking:
    """A blocking client, which treats an end without TLS close alert as an error."""

    def __init__(self, edge: Edge) -> None:
        host, port = edge.address.split(":")
        self._tcp = socket.create_connection((host, int(port)), timeout=PATIENCE_S)
        assert edge.trusting is not None
        edge.at_end.callback(self._tcp.close)
        self._tls = edge.trusting.wrap_socket(self._tcp, server_hostname=host, suppress_ragged_eofs=False)
        edge.at_end.callback(self._tls.close)

    def send(self, data: bytes) -> None:
        self._tls.sendall(data)

    def receive(self, until: bytes) -> bytes:
        """Receive up to and including these bytes."""
        found = b""
        while not found.endswith(until):
            found += self._tls.recv(1)
        return found

    def receive_all(self, size: int) -> None:
        """Receive at least this many bytes."""
        while size > 0:
            size -= len(self._tls.recv(1 << 20))

    def rest(self) -> bytes:
        """Receive everything until the edge's close alert."""
        found = b""
        while data := self._tls.recv(1 << 16):
            found += data
        return found

    def close(self) -> None:
        self._tls.close()


def masked(opcode: Opcode, data: bytes) -> bytes:
    return Frame(opcode, data).serialize(mask=True)


async def test_a_client_says_and_hears_as_without_tls(ours: Certificates) -> None:
    async with secure(ours) as (edge, link):
        client, number = await accepted(edge, link)
        await client.send(say("m1"))
        assert (await link.next("frame")).connection == number
        await link.ack(number, "m1")
        assert (await hears(client))["id"] == "m1"
        await client.send(say("m2", "x" * 300_000))
        assert len((await link.next("frame")).frame.message.parts[0].text.text) == 300_000
        await link.ack(number, "m2")
        assert (await hears(client))["id"] == "m2"
        for seq, size in enumerate((1, 10, 20_000, 900_000), 1):
            await link.publish(seq, "x" * size)
            assert len((await hears(client))["parts"][0]["text"]) == size
        await client.close()
        assert client.close_code == 1000
        await link.next("closed")


async def test_the_last_frame_and_the_close_arrive(ours: Certificates) -> None:
    async with secure(ours) as (edge, link):
        client, number = await accepted(edge, link)
        await link.publish(1, TEXT)
        await link.close(number, 4420, "OVERLOADED")
        assert [(await hears(client))["type"] for _ in range(2)] == ["message", "closing"]
        assert await closed(client) == 4420


async def test_a_client_that_still_sends_is_told_why_it_is_closed(ours: Certificates) -> None:
    """It receives everything and a TLS close alert, though it reads only afterwards."""
    async with secure(ours, frame_bytes=4096) as (edge, link):
        client = await asyncio.to_thread(Blocking, edge)
        await asyncio.to_thread(client.send, upgrade())
        await link.accept()
        await asyncio.to_thread(client.receive, b"\r\n\r\n")
        await asyncio.to_thread(client.send, masked(Opcode.TEXT, b"x" * 4_000_000))
        rest = await asyncio.to_thread(client.rest)
        client.close()
    assert b"FRAME_TOO_LARGE" in rest
    # The close frame is the last, and has one byte for its length.
    assert rest.rpartition(b"\x88")[2][1:3] == catalogue.FRAME_TOO_LARGE.close_code.to_bytes(2)


async def test_a_page_and_then_an_event_stream_come_by_one_connection(ours: Certificates) -> None:
    async with secure(ours) as (edge, link):
        reader, writer = await edge.raw()
        for _ in range(2):
            writer.write(HEALTH)
            await asyncio.wait_for(reader.readuntil(b'"connections":0'), PATIENCE_S)
            await reader.read(1 << 16)
        writer.write(f"GET /v1/events?{QUERY} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        number = await link.accept()
        assert b"200 OK" in await asyncio.wait_for(reader.readuntil(b"event: connected\n"), PATIENCE_S)
        await link.publish(1, "hello")
        await asyncio.wait_for(reader.readuntil(b'"hello"'), PATIENCE_S)
        await link.close(number, 4420, "OVERLOADED")
        assert b"event: closing" in await answer(reader)


@pytest.mark.parametrize("how", ["reset", "close"])
async def test_however_a_client_goes_it_is_forgotten(ours: Certificates, how: str) -> None:
    async with secure(ours) as (edge, link):
        reader, writer = await edge.raw()
        writer.write(upgrade())
        number = await link.accept()
        await reader.readuntil(b"\r\n\r\n")
        reset(writer) if how == "reset" else writer.close()
        assert (await link.next("closed")).connection == number
        await edge.until(lambda: not edge.runtime.core.connections)


async def test_a_client_that_ends_its_direction_by_tls_alone_has_left(ours: Certificates) -> None:
    async with secure(ours) as (edge, link):
        client = await asyncio.to_thread(Blocking, edge)
        request = f"GET /v1/events?{QUERY} HTTP/1.1\r\nHost: localhost\r\n\r\n"
        await asyncio.to_thread(client.send, request.encode())
        number = await link.accept()
        await asyncio.to_thread(client.receive, b"event: connected\n")
        # It reads until the close alert of the edge.
        with pytest.raises(ssl.SSLError, match="APPLICATION_DATA_AFTER_CLOSE_NOTIFY"):
            await asyncio.to_thread(client._tls.unwrap)
        assert (await link.next("closed")).connection == number
        client.close()


async def test_a_slow_reader_is_closed_without_delaying_the_others(ours: Certificates) -> None:
    async with secure(ours, outbox_bytes=1 << 17) as (edge, link):
        fast, number = await accepted(edge, link)
        slow = await asyncio.to_thread(Blocking, edge)
        await asyncio.to_thread(slow.send, upgrade())
        await link.accept(topic=0)
        seq = 0
        async with asyncio.timeout(2 * PATIENCE_S):
            while not edge.runtime.core.counts.slow_consumers:
                seq += 1
                await link.publish(seq, TEXT)
                assert (await hears(fast))["position"]["seq"] == seq
                assert edge.runtime.core.backpressure.total_bytes <= 1 << 17
        assert (await link.next("closed")).connection != number
        slow.close()
        await fast.close()


async def test_what_a_client_has_not_taken_is_known_to_the_byte(ours: Certificates) -> None:
    async with secure(ours) as (edge, link):
        slow = await asyncio.to_thread(Blocking, edge)
        await asyncio.to_thread(slow.send, upgrade())
        number = await link.accept()
        await asyncio.to_thread(slow.receive, b"\r\n\r\n")
        await link.publish(1, "x" * 8_000_000)
        connection = edge.runtime.core.connections[number]
        await edge.until(lambda: connection.has_backlog)
        lag_bytes = edge.transport(number).buffered
        assert lag_bytes > 1_000_000
        await asyncio.to_thread(slow.receive_all, 8_000_000)
        await edge.until(lambda: not connection.has_backlog)
        assert edge.transport(number).buffered == 0
        slow.close()


async def test_small_frames_leave_at_once(ours: Certificates) -> None:
    async with secure(ours) as (edge, link):
        _, number = await accepted(edge, link)
        transport = edge.transport(number).transport
        assert isinstance(transport, edge_tls.TlsTransport)
        tcp = transport.get_extra_info("socket")
        assert tcp.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


async def test_who_speaks_plain_http_is_told_that_it_takes_tls(ours: Certificates) -> None:
    async with secure(ours) as (edge, _):
        edge.trusting = None
        reader, writer = await edge.raw()
        writer.write(HEALTH)
        assert b"use https:// and wss://" in await answer(reader)


@pytest.mark.parametrize("first_bytes", [b"", b"\x00" * 100, b"SSH-2.0-OpenSSH_9.6\r\n", bytes(range(256))])
@pytest.mark.parametrize("how", ["reset", "close"])
async def test_who_speaks_no_tls_is_closed_and_nothing_is_raised(
    ours: Certificates, first_bytes: bytes, how: str
) -> None:
    async with secure(ours) as (edge, link):
        trusting, edge.trusting = edge.trusting, None
        _, writer = await edge.raw()
        writer.write(first_bytes)
        reset(writer) if how == "reset" else writer.close()
        edge.trusting = trusting
        client, _ = await accepted(edge, link)
        await client.close()


async def test_a_client_that_stops_in_its_handshake_holds_up_nobody_and_is_cut_off(
    ours: Certificates,
) -> None:
    async with secure(ours, handshake_timeout_s=under_load(0.5)) as (edge, link):
        trusting, edge.trusting = edge.trusting, None
        hello = first_flight(ours)
        halted = [await edge.raw() for _ in range(20)]
        for _, writer in halted:
            writer.write(hello[: len(hello) // 2])
        whole, writer = await edge.raw()
        writer.write(hello)
        edge.trusting = trusting
        client, _ = await accepted(edge, link)
        await client.close()
        # They receive the server's part of the handshake, if they sent enough, and then the end.
        assert await answer(whole)
        for reader, _ in halted:
            assert await answer(reader) == b""


def first_flight(ours: Certificates) -> bytes:
    """Return the first bytes of a client."""
    outgoing = ssl.MemoryBIO()
    client = ours.trusting.wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname="localhost")
    with pytest.raises(ssl.SSLWantReadError):
        client.do_handshake()
    return outgoing.read()


async def test_a_client_that_does_not_trust_the_edge_leaves_no_trace(
    ours: Certificates, tmp_path: Path
) -> None:
    async with secure(ours) as (edge, _):
        edge.trusting = Certificates(tmp_path, "Others").trusting
        with pytest.raises(ssl.SSLCertVerificationError):
            await edge.raw()


async def test_a_certificate_that_was_replaced_is_shown_to_those_who_come_and_the_others_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trunkline_runtime.certificates, "CHECK_INTERVAL_S", 0.0)
    ours = Certificates(tmp_path)
    async with secure(ours) as (edge, link):
        early, _ = await accepted(edge, link)
        first = await serial(edge)
        ours.renew(ours.edge)
        second = await serial(edge)
        assert second != first
        with capture_logs() as lines:
            ours.edge.write_text("rubbish")
            assert [await serial(edge) for _ in range(3)] == [second] * 3
        assert [line["log_level"] for line in lines] == ["warning"]
        await link.publish(1, "still there")
        assert (await hears(early))["position"]["seq"] == 1
        await early.close()


async def serial(edge: Edge) -> str:
    """Return the serial number of the edge's certificate."""
    _, writer = await edge.raw()
    found = serial_of(writer.get_extra_info("ssl_object"))
    writer.close()
    return found


async def test_a_request_is_answered_by_a_stream_as_without_tls(ours: Certificates) -> None:
    """Neither its end nor its cut is lost."""
    body = b'{"id":"c","messages":[{"id":"m","role":"user","parts":[{"type":"text","text":"hi"}]}]}'
    lines = ["POST /ai/demo/echo/chat HTTP/1.1", "host: localhost", "content-type: application/json"]
    request = "\r\n".join([*lines, f"content-length: {len(body)}", "\r\n"]).encode() + body
    async with secure(ours, drain_s=0.0) as (edge, link):
        client = await asyncio.to_thread(Blocking, edge)
        await asyncio.to_thread(client.send, request)
        number = await link.accept()
        await link.next("frame")
        acked = RouterEntry()
        acked.send.connection = number
        acked.send.frame.ack.id, acked.send.frame.ack.message_id = "m", "q"
        acked.send.frame.ack.position.seq = 1
        await link.send(acked)
        received = await asyncio.to_thread(client.receive, b": accepted\n\n\r\n")
        assert b"transfer-encoding: chunked" in received
        await edge.runtime.close_all()
        with suppress(OSError):
            assert not (await asyncio.to_thread(client.rest)).endswith(b"0\r\n\r\n")
