"""HTTP connections that take their time, and the bounds of connections."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from tests.edge.transport.edge_loopback import (
    PATIENCE_S,
    QUERY,
    Edge,
    accepted,
    answer,
    edge_and_link,
    running_edge,
    upgrade,
)
from tests.support.patience import under_load

GET = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"
POST = b"POST /healthz HTTP/1.1\r\nHost: localhost\r\n"


@pytest_asyncio.fixture
async def edge() -> AsyncIterator[Edge]:
    limit_s = under_load(0.1)
    async with running_edge("127.0.0.1:1", http_timeout_s=limit_s, handshake_timeout_s=limit_s) as edge:
        yield edge


async def head_of(reader: asyncio.StreamReader) -> bytes:
    return await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), PATIENCE_S)


@pytest.mark.parametrize(
    ("request_bytes", "more"),
    [
        (POST + b"Content-Length: 100\r\n\r\n{", b"x"),
        (POST + b"Transfer-Encoding: chunked\r\n\r\n", b"1\r\nx\r\n"),
        (POST + b"Transfer-Encoding: chunked\r\n\r\n0\r\n", b"X: y\r\n"),
        (GET + b"GET /healthz HTTP/1.1\r\nHo", b"x"),
        (b"\r\n", b"\r\n"),
    ],
    ids=["body", "chunks", "trailers", "next head", "empty lines"],
)
async def test_a_request_that_does_not_end_ends_in_time(
    edge: Edge, request_bytes: bytes, more: bytes
) -> None:
    reader, writer = await edge.raw()
    writer.write(request_bytes)
    reading = asyncio.ensure_future(answer(reader))
    async with asyncio.timeout(PATIENCE_S):
        while not reading.done():
            writer.write(more)
            await asyncio.wait({reading}, timeout=0.02)
    await asyncio.gather(reading, return_exceptions=True)
    await edge.until(lambda: not edge.runtime.budget._open)
    writer.close()


async def test_a_body_without_end_behind_an_answer_ends_in_time(edge: Edge) -> None:
    reader, writer = await edge.raw()
    writer.write(POST + b"Content-Length: 1000000\r\n\r\n")
    assert b" 405 " in await head_of(reader)
    reading = asyncio.ensure_future(answer(reader))
    async with asyncio.timeout(PATIENCE_S):
        while not reading.done():
            writer.write(b"x")
            await asyncio.wait({reading}, timeout=0.02)
    await asyncio.gather(reading, return_exceptions=True)
    writer.close()


async def test_a_response_that_is_not_read_is_cut_off_in_time(edge: Edge) -> None:
    _, writer = await edge.raw()
    writer.transport.pause_reading()  # type: ignore[attr-defined]
    writer.write(b"GET /openapi.json HTTP/1.1\r\nHost: localhost\r\n\r\n" * 200)
    await edge.until(lambda: edge.runtime.budget.http_connections == 1)
    await edge.until(lambda: not edge.runtime.budget._open)
    writer.close()


async def test_pipelined_requests_wait_until_the_client_has_taken_the_responses() -> None:
    request = b"GET /openapi.json HTTP/1.1\r\nHost: localhost\r\n\r\n"
    async with running_edge("127.0.0.1:1") as edge:
        reader, writer = await edge.raw()
        writer.transport.pause_reading()
        # Cut within a head, which another protocol awaits.
        writer.write((request * 300)[:-40])
        await edge.until(lambda: edge.runtime.budget.http_connections == 1)
        transport = next(iter(edge.runtime.budget._open))
        most = 0
        for _ in range(20):
            await asyncio.sleep(0.01)
            most = max(most, transport.get_write_buffer_size())
        assert most < 1 << 20
        writer.transport.resume_reading()
        writer.write(request[-40:])
        for _ in range(300):
            head = await head_of(reader)
            size = int(head.lower().partition(b"content-length: ")[2].partition(b"\r")[0])
            await asyncio.wait_for(reader.readexactly(size), PATIENCE_S)
        writer.close()


async def test_a_kept_connection_ends_after_its_time() -> None:
    async with running_edge("127.0.0.1:1", http_keep_alive_s=0) as edge:
        reader, writer = await edge.raw()
        writer.write(GET)
        assert b'"connections":0' in await answer(reader)
        writer.close()


async def test_a_new_connection_displaces_an_idle_one_and_then_one_without_a_request() -> None:
    async with edge_and_link(max_connections=2, max_http_connections=1) as (edge, link):
        half_reader, half = await edge.raw()
        half.write(b"GET /he")
        idle_reader, idle = await edge.raw()
        idle.write(GET)
        assert b" 200 " in await head_of(idle_reader)
        await accepted(edge, link)
        assert len(edge.runtime.budget._open) == 3
        await accepted(edge, link, topic=0)
        assert edge.runtime.budget.http_connections == 0
        await asyncio.gather(answer(idle_reader), return_exceptions=True)
        serving_reader, serving = await edge.raw()
        serving.write(POST + b"Content-Length: 9\r\n\r\n")
        assert b" 405 " in await head_of(serving_reader)
        await asyncio.gather(answer(half_reader), return_exceptions=True)
        assert edge.runtime.core.counts.connections_displaced == 2
        for each in (half, idle, serving):
            each.close()


REFUSED = [
    upgrade().replace(b"/v1/connect", b"/nothing"),
    upgrade().replace(b"GET", b"POST"),
    upgrade("nonsense=1"),
    upgrade(f"{QUERY}&resume=frame") + b"\x83\x80\0\0\0\0",
]


async def test_a_new_connection_displaces_a_websocket_whose_client_does_not_close() -> None:
    async with edge_and_link(max_connections=3, max_http_connections=1) as (edge, link):
        refused = [await edge.raw() for _ in REFUSED]
        for (_, writer), request in zip(refused, REFUSED, strict=True):
            writer.write(request)
        await edge.until(lambda: len(edge.runtime.budget._ending) == len(REFUSED))
        await accepted(edge, link)
        assert edge.runtime.core.counts.connections_displaced == 1
        for _, writer in refused:
            writer.close()


@pytest.mark.parametrize("bounds", [{"max_connections": 1}, {"max_handshakes": 1}])
async def test_a_new_client_displaces_one_that_is_silent(bounds: dict[str, int]) -> None:
    async with edge_and_link(max_http_connections=1, **bounds) as (edge, link):
        silent = [await edge.raw() for _ in range(2)]
        for reader, writer in silent:
            writer.write(upgrade(f"{QUERY}&resume=frame"))
            assert b" 101 " in await head_of(reader)
        await accepted(edge, link)
        await asyncio.gather(answer(silent[0][0]), return_exceptions=True)
        assert edge.runtime.core.counts.connections_displaced > 0
        for _, writer in silent:
            writer.close()


async def test_more_requests_at_a_time_than_there_may_be_are_answered_503() -> None:
    async with running_edge("127.0.0.1:1", max_http_connections=1) as edge:
        _, first = await edge.raw()
        first.write(POST + b"Content-Length: 9\r\n\r\n")
        await edge.until(lambda: edge.runtime.budget.http_connections == 1)
        reader, second = await edge.raw()
        second.write(GET)
        received = await answer(reader)
        assert received.startswith(b"HTTP/1.1 503 ")
        assert b"OVERLOADED" in received
        first.close()
        second.close()


async def test_more_connections_than_there_may_be_are_answered_503() -> None:
    async with edge_and_link(max_connections=1, max_http_connections=1) as (edge, link):
        await accepted(edge, link)
        _, serving = await edge.raw()
        serving.write(POST + b"Content-Length: 9\r\n\r\n")
        await edge.until(lambda: edge.runtime.budget.http_connections == 1)
        for _ in range(20):
            reader, writer = await edge.raw()
            assert (await answer(reader)).startswith(b"HTTP/1.1 503 ")
            writer.close()
        assert edge.runtime.core.counts.connections_rejected == 20
        serving.close()


async def test_a_body_of_very_many_chunks_is_answered_400() -> None:
    # To parse so many may take longer than the short limit of `edge`.
    async with running_edge("127.0.0.1:1") as edge:
        reader, writer = await edge.raw()
        head = b"POST /v1/tenants/t/messages HTTP/1.1\r\nHost: localhost\r\nX-API-Key: k\r\n"
        head += b"Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
        writer.write(head + b"1\r\n \r\n" * 20_000)
        received = await answer(reader)
        assert received.startswith(b"HTTP/1.1 400 ")
        assert b"MALFORMED_REQUEST" in received
        writer.close()
