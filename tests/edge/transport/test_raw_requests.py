"""Requests of any form on the port, byte by byte (RFC 9112 and RFC 6455, section 4)."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from tests.edge.transport.edge_loopback import (
    PATIENCE_S,
    QUERY,
    Edge,
    ScriptedLink,
    answer,
    edge_and_link,
    running_edge,
    upgrade,
)
from tests.support.patience import under_load

KEY = base64.b64encode(bytes(16)).decode()
SOCKET = f"/v1/connect?{QUERY}"
MAIM, LANGBOT = "/ws/t/p", "/api/v1/pipelines/p/ws/connect"


@pytest_asyncio.fixture
async def edge() -> AsyncIterator[Edge]:
    async with running_edge("127.0.0.1:1") as edge:
        yield edge


@pytest_asyncio.fixture
async def linked() -> AsyncIterator[tuple[Edge, ScriptedLink]]:
    async with edge_and_link() as linked:
        yield linked


async def exchange(edge: Edge, data: bytes, *, ends: bool = False) -> bytes:
    """Send bytes and return everything that the edge sends until it closes."""
    reader, writer = await edge.raw()
    writer.write(data)
    if ends:
        writer.write_eof()
    received = await answer(reader)
    writer.close()
    return received


def handshake(
    target: str = SOCKET, *, method: str = "GET", version: str = "HTTP/1.1", **fields: str | None
) -> bytes:
    """Return a handshake; a field of None is left out, and one with more lines is repeated."""
    headers: dict[str, str | None] = {
        "Host": "localhost",
        "Upgrade": "websocket",
        "Connection": "Upgrade",
        "Sec_WebSocket_Key": KEY,
        "Sec_WebSocket_Version": "13",
        **fields,
    }
    lines = [f"{method} {target} {version}"]
    for name, value in headers.items():
        lines += [f"{name.replace('_', '-')}: {line}" for line in (value or "").splitlines()]
    return "\r\n".join([*lines, "\r\n"]).encode("latin-1")


BAD_HANDSHAKES = [
    (handshake(Sec_WebSocket_Key=None), 400),
    (handshake(Sec_WebSocket_Key="no base64"), 400),
    (handshake(Sec_WebSocket_Key="c2hvcnQ="), 400),
    (handshake(Sec_WebSocket_Key=f"{KEY}\n{KEY}"), 400),
    (handshake(Sec_WebSocket_Version=None), 426),
    (handshake(Sec_WebSocket_Version="8"), 426),
    (handshake(Connection="keep-alive"), 426),
    (handshake(Connection=None), 426),
    (handshake(version="HTTP/1.0", Connection="Upgrade, close"), 426),
    (handshake(version="HTTP/2.0"), 505),
    (handshake(method="POST"), 405),
    (handshake(method="POST", Content_Length="3") + b"abc", 405),
    (handshake(Content_Length="3") + b"abc", 400),
    (handshake(Transfer_Encoding="chunked") + b"0\r\n\r\n", 400),
    (handshake(Host="a\nb"), 400),
    (handshake(Host=None), 400),
    (handshake(Host="a b"), 400),
    (handshake("/v1/connect?tenant=\xff"), 400),
    (handshake("/v1/\u00e9?tenant=t"), 400),
    (handshake("v1/connect"), 400),
    (handshake("/v2/connect"), 404),
    (handshake().replace(b"Host: localhost", b"Host : localhost"), 400),
    (handshake().replace(b"Host: localhost", b"Host: localhost\r\nNo colon"), 400),
    (handshake().replace(b"Host: localhost", b"Host: localhost\r\nX: a\0b"), 400),
    (handshake(X="x" * 17_000), 431),
    (handshake("/v1/connect?" + "x" * 17_000), 414),
]


async def test_bad_handshakes_are_answered_by_a_status(edge: Edge) -> None:
    for request_bytes, status in BAD_HANDSHAKES:
        received = await exchange(edge, request_bytes)
        assert received.startswith(f"HTTP/1.1 {status} ".encode()), request_bytes[:500]
        head, _, body = received.partition(b"\r\n\r\n")
        assert f"content-length: {len(body)}".encode() in head.lower()
        assert json.loads(body)["details"][0]["domain"] == "trunkline"
        if status == 426:
            assert b"\r\nupgrade: websocket\r\n" in head.lower()
            assert b"\r\nsec-websocket-version: 13\r\n" in head.lower()
    assert edge.runtime.core.handshakes.is_empty
    # HTTP/1.0 has no upgrades: that is a plain request.
    counts = edge.runtime.core.counts
    assert counts.protocol_errors + counts.refused_by.total() == len(BAD_HANDSHAKES) - 1


GOOD_HANDSHAKES = [
    handshake(Upgrade="h2c, websocket"),
    handshake(Upgrade="WebSocket"),
    handshake(Upgrade="h2c\nwebsocket"),
    handshake(Connection="keep-alive, Upgrade"),
    handshake(Connection="keep-alive\nupgrade"),
    handshake(f"http://localhost{SOCKET}"),
    handshake(f"WSS://127.0.0.1:443{SOCKET}"),
    handshake(Cookie="c=" + "x" * 8700),
    handshake(**{f"X{number}": "y" for number in range(400)}),
    handshake(X="a\nb").replace(b"\r\nX: b", b"\r\n b"),
    b"\r\n\r\n" + handshake(),
    handshake().replace(b"\r\n", b"\n"),
]


async def test_handshakes_in_any_allowed_form_are_accepted(linked: tuple[Edge, ScriptedLink]) -> None:
    edge, link = linked
    for number, request_bytes in enumerate(GOOD_HANDSHAKES):
        reader, writer = await edge.raw()
        writer.write(request_bytes)
        opened = await link.next("opened")
        assert opened.address.tenant == "t"
        await link.accept(0 if number else 1, opened)
        assert b"HTTP/1.1 101 " in await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), PATIENCE_S)
        writer.close()
        await link.next("closed")


NO_REQUESTS = [
    (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400),
    (b"SSH-2.0-OpenSSH_9.9\r\n", 400),
    (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505),
    (b"EHLO example.org\r\n", 400),
    (b"GET /\r\n", 400),
    (b"\x00\x01\x02\x03", 400),
    (b"x" * 40, 400),
    (b"GET / HTTP/1.1 extra\r\n", 400),
    (b"GET http:///path HTTP/1.1\r\nHost: localhost\r\n\r\n", 400),
    (b"CONNECT example.org:443 HTTP/1.1\r\nHost: example.org\r\n\r\n", 400),
    (b"GET ftp://x/ HTTP/1.1\r\nHost: localhost\r\n\r\n", 400),
    # To skip empty lines takes longer than to send them.
    (b"\r\n" * 100, 400),
    (b"\n" * 100, 400),
]


async def test_what_is_no_request_is_answered_at_once(edge: Edge) -> None:
    for data, status in NO_REQUESTS:
        received = await asyncio.wait_for(exchange(edge, data), under_load(3))
        assert received.startswith(f"HTTP/1.1 {status} ".encode()), data


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/healthz", 200),
        (f"/v1/events?{QUERY}", 404),
        ("/v1/tenants/t/messages", 501),
        ("/v1/connect", 426),
    ],
)
async def test_a_target_in_absolute_form_is_served_by_every_protocol(
    linked: tuple[Edge, ScriptedLink], path: str, status: int
) -> None:
    edge, _ = linked
    path = path.replace("tenant=t", "tenant=nobody")
    head = f"GET http://localhost{path} HTTP/1.1\r\nHost: ignored\r\nConnection: close\r\n\r\n"
    assert (await exchange(edge, head.encode())).startswith(f"HTTP/1.1 {status} ".encode())


@pytest.mark.parametrize("path", ["/v1/connect", MAIM, LANGBOT])
async def test_a_plain_request_to_a_path_of_websockets_is_answered_426(edge: Edge, path: str) -> None:
    received = await exchange(
        edge, f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode()
    )
    assert received.startswith(b"HTTP/1.1 426 ")
    assert b"\r\nupgrade: websocket\r\n" in received


@pytest.mark.parametrize("extra", ["Content-Length: 2\r\nTransfer-Encoding: chunked\r\n"])
@pytest.mark.parametrize("path", ["/v1/tenants/t/messages", "/healthz", "/v1/events"])
async def test_two_lengths_of_a_body_are_answered_400_and_closed(edge: Edge, path: str, extra: str) -> None:
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\n{extra}\r\n".encode()
    received = await exchange(edge, head + b"0\r\n\r\nGET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
    assert received.startswith(b"HTTP/1.1 400 ")
    assert received.count(b"HTTP/1.1 ") == 1


async def test_a_client_that_ends_its_side_after_its_request_gets_the_answer(edge: Edge) -> None:
    post = b"POST /healthz HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\n\r\n{}"
    get = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"
    received = await exchange(edge, get + post + get, ends=True)
    assert [part[:3] for part in received.split(b"HTTP/1.1 ")[1:]] == [b"200", b"405", b"200"]
    stream = f"GET /v1/events?{QUERY}&resume=%21 HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()
    assert (await exchange(edge, stream, ends=True)).startswith(b"HTTP/1.1 400 ")


async def test_a_client_that_ends_its_side_while_its_stream_is_accepted_gets_the_answer(
    linked: tuple[Edge, ScriptedLink],
) -> None:
    edge, link = linked
    reader, writer = await edge.raw()
    writer.write(f"GET /v1/events?{QUERY} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
    opened = await link.next("opened")
    writer.write_eof()
    await edge.until(lambda: edge.transport(opened.connection).got_eof)
    await link.accept(opened=opened)
    received = await answer(reader)
    assert received.startswith(b"HTTP/1.1 200 ")
    assert b"event: connected" in received
    assert (await link.next("closed")).connection == opened.connection
    writer.close()


@pytest.mark.parametrize(
    "ends", [b"POST /healthz HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\n{}", b"GET /he"]
)
async def test_a_client_that_ends_its_side_within_its_request_is_answered_400(
    edge: Edge, ends: bytes
) -> None:
    # The first is answered before its body is read.
    expected = b"HTTP/1.1 405 " if ends.startswith(b"POST") else b"HTTP/1.1 400 "
    assert (await exchange(edge, ends, ends=True)).startswith(expected)


async def test_requests_that_come_together_may_be_for_different_protocols(
    linked: tuple[Edge, ScriptedLink],
) -> None:
    edge, link = linked
    reader, writer = await edge.raw()
    first = b"POST /healthz HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n\r\n\r\n"
    second = b"GET http://x/healthz HTTP/1.1\r\nHost: y\r\n\r\n"
    writer.write(first + second + upgrade())
    await link.accept()
    received = await asyncio.wait_for(reader.readuntil(b'"type":"connected"'), PATIENCE_S)
    assert [part[:3] for part in received.split(b"HTTP/1.1 ")[1:]] == [b"405", b"200", b"101"]
    writer.close()


async def test_a_request_for_a_protocol_that_is_not_served_gets_plain_http(edge: Edge) -> None:
    request = (
        b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade, close\r\nUpgrade: h2c\r\n\r\n"
    )
    assert (await exchange(edge, request)).startswith(b"HTTP/1.1 200 ")


async def test_a_client_that_expects_to_be_asked_for_its_body_is_asked(
    linked: tuple[Edge, ScriptedLink],
) -> None:
    edge, _ = linked
    reader, writer = await edge.raw()
    head = b"POST /v1/tenants/t/messages HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    writer.write(head + b"Content-Length: 2\r\nExpect: 100-continue\r\nConnection: close\r\n\r\n")
    assert (
        await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), PATIENCE_S) == b"HTTP/1.1 100 Continue\r\n\r\n"
    )
    writer.write(b"{}")
    assert (await answer(reader)).startswith(b"HTTP/1.1 501 ")
    writer.close()


async def test_a_client_that_still_sends_gets_the_answer_that_it_is_refused(edge: Edge) -> None:
    reader, writer = await edge.raw()
    head = (
        b"POST /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: 10000000\r\n\r\n"
    )
    writer.write(head + b"x" * 500_000)
    assert b" 405 " in await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), PATIENCE_S)
    assert b"Method Not Allowed" in await answer(reader)
    writer.close()
