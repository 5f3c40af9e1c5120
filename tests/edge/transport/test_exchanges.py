"""Requests that a connection answers, over real sockets: bodies, refusals, streams and their ends."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator

import pytest
from trunkline.v1 import catalogue
from trunkline.v1.edge_service_pb2 import RouterEntry
from trunkline.v1.message_pb2 import MESSAGE_STATE_OPEN, ROLE_AGENT

from tests.edge.core.core_harness import ended
from tests.edge.transport.edge_loopback import (
    PATIENCE_S,
    Edge,
    ScriptedLink,
    ScriptedRouter,
    running_edge,
    running_router,
)
from tests.support.declared_tenants import policy
from tests.support.patience import under_load

BODY = json.dumps(
    {"id": "c1", "messages": [{"id": "m1", "role": "user", "parts": [{"type": "text", "text": "hi"}]}]}
).encode()
FRAME_BYTES = 1 << 16
LAST_CHUNK = b"0\r\n\r\n"


@pytest.fixture
async def linked() -> AsyncIterator[tuple[Edge, ScriptedLink]]:
    router = ScriptedRouter()
    router.policies = [policy("demo"), policy("closed", tokens=["s3cret"])]
    settings = {"large_frame_bytes": FRAME_BYTES, "http_timeout_s": under_load(0.4), "drain_s": 0.0}
    async with running_router(router=router), running_edge(router.address, **settings) as edge:
        link = await router.link()
        await edge.until(lambda: edge.runtime.tenants.are_known)
        yield edge, link


def head(length: int | str = len(BODY), *extra: str, method: str = "POST", tenant: str = "demo") -> bytes:
    lines = [f"{method} /ai/{tenant}/echo/chat HTTP/1.1", "host: localhost", *extra]
    if length != "":
        lines += ["content-type: application/json", f"content-length: {length}"]
    return "\r\n".join([*lines, "\r\n"]).encode()


CHUNKED = head("", "transfer-encoding: chunked", "content-type: application/json")


class Raw:
    """A client that writes what it likes."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    async def head(self) -> str:
        return (await asyncio.wait_for(self.reader.readuntil(b"\r\n\r\n"), PATIENCE_S)).decode()

    async def rest(self) -> bytes:
        return await asyncio.wait_for(self.reader.read(-1), PATIENCE_S)


async def asking(edge: Edge, *pieces: bytes) -> Raw:
    reader, writer = await edge.raw()
    for piece in pieces:
        writer.write(piece)
        await writer.drain()
    return Raw(reader, writer)


async def refusal(edge: Edge, *pieces: bytes) -> tuple[int, str]:
    client = await asking(edge, *pieces)
    status = int((await client.head()).split()[1])
    return status, (await client.rest()).decode()


def sent(connection: int) -> RouterEntry:
    entry = RouterEntry()
    entry.send.connection = connection
    return entry


async def accept(link: ScriptedLink) -> int:
    """Accept the next connection, and its message; return its number."""
    connection = await link.accept()
    message = await link.next("frame")
    assert message.frame.message.id == "m1"
    acked = sent(connection)
    acked.send.frame.ack.id, acked.send.frame.ack.message_id = "m1", "q"
    acked.send.frame.ack.position.seq = 1
    await link.send(acked)
    return connection


def opened(text: str) -> RouterEntry:
    entry = RouterEntry()
    entry.publish.topic = 1
    message = entry.publish.frame.message
    message.id, message.reply_to, message.state = "r", "q", MESSAGE_STATE_OPEN
    message.author.role = ROLE_AGENT
    message.position.epoch, message.position.seq, message.next_index = "e", 2, 1
    message.parts.add().text.text = text
    return entry


@pytest.mark.parametrize(
    "pieces",
    [
        [head(), BODY],
        [head() + BODY[:10], BODY[10:]],
        [*(bytes((byte,)) for byte in head()[:20]), head()[20:] + BODY],
        [
            CHUNKED,
            b"5\r\n" + BODY[:5] + b"\r\n",
            b"%x\r\n" % (len(BODY) - 5) + BODY[5:] + b"\r\n0\r\n\r\n",
        ],
    ],
)
async def test_a_body_in_any_pieces_is_answered(
    linked: tuple[Edge, ScriptedLink], pieces: list[bytes]
) -> None:
    edge, link = linked
    client = await asking(edge, *pieces)
    await accept(link)
    answer = await client.head()
    assert answer.startswith("HTTP/1.1 200 OK")
    assert "transfer-encoding: chunked" in answer
    await link.send(opened("hello"), ended(1, seq=3))
    body = await client.rest()
    assert b'"delta":"hello"' in body
    assert body.endswith(b"data: [DONE]\n\n\r\n" + LAST_CHUNK)
    await edge.until(lambda: not edge.runtime.core.connections)
    assert (await link.next("closed")).connection
    assert edge.runtime.bodies.buffered_bytes == 0


async def test_a_client_that_waits_for_100_is_asked_for_its_body(linked: tuple[Edge, ScriptedLink]) -> None:
    edge, link = linked
    client = await asking(edge, head(len(BODY), "expect: 100-continue"))
    assert await client.head() == "HTTP/1.1 100 Continue\r\n\r\n"
    client.writer.write(BODY)
    await accept(link)
    assert (await client.head()).startswith("HTTP/1.1 200")


@pytest.mark.parametrize(
    ("pieces", "status", "sentence"),
    [
        ([head(FRAME_BYTES + 1)], 413, "exceeds"),
        ([head(12 << 20), b" " * (12 << 20)], 413, "exceeds"),
        ([CHUNKED] + [b"8000\r\n" + b" " * 0x8000 + b"\r\n"] * 3, 413, "exceeds"),
        ([head(10) + BODY[:5]], 408, ""),
        ([head() + b"x" * len(BODY)], 400, "body: "),
        ([head("", "content-type: text/plain", "content-length: 2") + b"{}"], 415, "application/json"),
        ([head("", "content-type: text/plain")], 415, "application/json"),
        ([head(2, "content-encoding: gzip") + b"{}"], 415, "not compressed"),
        ([head(2, "transfer-encoding: chunked") + b"{}"], 400, ""),
        ([head(method="PUT")], 405, ""),
        ([head().replace(b"HTTP/1.1", b"HTTP/1.0") + BODY], 505, "1.0"),
        ([head(tenant="closed") + BODY], 401, "Authentication"),
        ([head(len(BODY), "authorization: Bearer x", tenant="closed") + BODY], 401, "Authentication"),
        ([head(tenant="nobody") + BODY], 404, "does not exist"),
        ([b"GET /ai/demo/echo/chat/%s HTTP/1.1\r\nhost: localhost\r\n\r\n" % (b"x" * 65)], 400, "id: "),
    ],
)  # fmt: skip
async def test_what_is_refused_opens_no_connection(
    linked: tuple[Edge, ScriptedLink], pieces: list[bytes], status: int, sentence: str
) -> None:
    edge, link = linked
    found, text = await refusal(edge, *pieces)
    assert found == status, text
    assert sentence in text
    assert link.entries.empty()
    assert edge.runtime.bodies.buffered_bytes == 0
    assert not edge.runtime.core.connections


async def test_refusal_of_the_router_is_the_status(linked: tuple[Edge, ScriptedLink]) -> None:
    edge, link = linked
    client = await asking(edge, head(), BODY)
    connection = await link.accept()
    await link.next("frame")
    refused = sent(connection)
    error = refused.send.frame.error
    error.id, error.code, error.message, error.retry_after_ms = "m1", "RATE_LIMITED", "slow down", 1500
    await link.send(refused)
    answer = await client.head()
    assert answer.startswith("HTTP/1.1 429 ")
    assert "retry-after: 2\r\n" in answer
    assert await client.rest() == b"slow down"


async def test_a_client_that_leaves_while_it_sends_is_forgotten(linked: tuple[Edge, ScriptedLink]) -> None:
    edge, link = linked
    for _ in range(3):
        client = await asking(edge, head(30_000) + BODY)
        await edge.until(lambda: edge.runtime.bodies.buffered_bytes > 0)
        client.writer.close()
        await edge.until(lambda: edge.runtime.bodies.buffered_bytes == 0)
    assert link.entries.empty()


@pytest.mark.parametrize("begun", [True, False])
async def test_an_edge_that_stops_completes_no_stream(linked: tuple[Edge, ScriptedLink], begun: bool) -> None:
    edge, link = linked
    client = await asking(edge, head(), BODY)
    if begun:
        await accept(link)
        await client.head()
        await link.send(opened("hello"))
        await client.reader.readuntil(b'"delta":"hello"}')
    else:
        await link.accept()
        await link.next("frame")
    await edge.runtime.close_all()
    if begun:
        assert not (await client.rest()).endswith(LAST_CHUNK)
    else:
        assert (await client.head()).startswith("HTTP/1.1 503 ")


async def test_a_lost_link_is_survived_for_a_while(linked: tuple[Edge, ScriptedLink]) -> None:
    edge, link = linked
    client = await asking(edge, head(), BODY)
    await accept(link)
    await client.head()
    core = edge.runtime.core
    link.end()
    await edge.until(lambda: not core.uplink.is_up)
    for now in (1e6, 1e6 + 29):
        edge.runtime.step(core.tick, now, 0.0)
    assert core.connections
    edge.runtime.step(core.tick, 1e6 + 31, 0.0)
    assert not (await client.rest()).endswith(LAST_CHUNK)


class Spent:
    """A rate limiter that lets nothing pass."""

    def take(self, size: int, now: float) -> catalogue.Refused:
        return catalogue.RATE_LIMITED.refused(whose="this connection", limit="nothing")

    def charge(self, values: int, now: float) -> None:
        """Count nothing."""


async def test_a_request_over_the_rate_of_its_connection_is_refused_once(
    linked: tuple[Edge, ScriptedLink],
) -> None:
    """The page of the log behind a repeated message is a second frame of the same connection."""
    edge, link = linked
    client = await asking(edge, head(), BODY)
    connection = await link.accept()
    await link.next("frame")
    edge.runtime.core.connections[connection].rate_limiter = Spent()  # type: ignore[assignment]
    acked = sent(connection)
    acked.send.frame.ack.id, acked.send.frame.ack.message_id = "m1", "q"
    await link.send(acked)
    assert (await client.head()).startswith("HTTP/1.1 429 ")
    await edge.until(lambda: not edge.runtime.core.connections)


@pytest.mark.parametrize("path", ["/openai/demo/v1/models", "/ai/demo/echo/chat/c1"])
async def test_request_for_headers_alone_gets_no_body(linked: tuple[Edge, ScriptedLink], path: str) -> None:
    client = await asking(linked[0], f"HEAD {path} HTTP/1.1\r\nhost: localhost\r\n\r\n".encode())
    assert (await client.head()).startswith("HTTP/1.1 405 ")
    assert await client.rest() == b""


@pytest.mark.parametrize(
    ("line", "status"), [("PUT /{}/demo/v1/models", 405), ("GET /{}/demo/v1/nothing/here", 404)]
)
async def test_every_error_at_a_dialects_paths_has_its_form(
    linked: tuple[Edge, ScriptedLink], line: str, status: int
) -> None:
    ending = " HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n"
    found, text = await refusal(linked[0], (line.format("openai") + ending).encode())
    assert found == status
    assert json.loads(text)["error"]["type"] == "invalid_request_error"
    line = line.replace("demo/v1/models", "demo/echo/chat")
    found, text = await refusal(linked[0], (line.format("ai") + ending).encode())
    assert found == status
    # The sentence alone, neither an object nor a JSON string.
    assert not text.startswith(("{", '"'))
