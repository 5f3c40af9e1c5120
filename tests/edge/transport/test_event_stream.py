"""Event streams over real sockets."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import httpx
import pytest
from trunkline.v1.edge_service_pb2 import RouterEntry

from tests.edge.transport.edge_loopback import (
    PATIENCE_S,
    QUERY,
    Edge,
    ScriptedLink,
    accepted,
    answer,
    edge_and_link,
    hears,
    reset,
    running_edge,
    upgrade,
)
from tests.support.declared_tenants import policy
from tests.support.event_source import Event, EventReader
from tests.support.patience import under_load

TEXT = "x" * 50_000


def get(query: str = QUERY, extra: str = "", method: str = "GET") -> bytes:
    """Return a request for an event stream."""
    return f"{method} /v1/events?{query} HTTP/1.1\r\nHost: localhost\r\n{extra}\r\n".encode()


class Listening:
    """A client that has requested an event stream."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer
        self.events = EventReader()
        self.inbox: list[Event] = []

    async def head(self) -> str:
        return (await asyncio.wait_for(self.reader.readuntil(b"\r\n\r\n"), PATIENCE_S)).decode()

    async def next(self) -> Event:
        """Return the next event. Raises EOFError if there is none."""
        while not self.inbox:
            data = await asyncio.wait_for(self.reader.read(1 << 16), PATIENCE_S)
            if not data:
                raise EOFError
            self.inbox += self.events.feed(data)
        return self.inbox.pop(0)

    async def rest(self) -> list[Event]:
        """Read everything until the edge closes."""
        found = []
        try:
            while True:
                found.append(await self.next())
        except EOFError:
            return found


async def asking(edge: Edge, request: bytes) -> Listening:
    reader, writer = await edge.raw()
    writer.write(request)
    return Listening(reader, writer)


async def listening(edge: Edge, link: ScriptedLink, topic: int = 1) -> tuple[Listening, int]:
    """Connect a client that has read `connected`."""
    client = await asking(edge, get())
    number = await link.accept(topic)
    assert "200 OK" in await client.head()
    assert (await client.next()).type == "connected"
    return client, number


def refusal(response: bytes) -> tuple[int, dict[str, str], Any]:
    """Return status, headers and JSON of a response."""
    head, _, body = response.partition(b"\r\n\r\n")
    status, *lines = head.decode().split("\r\n")
    headers = dict(line.split(": ", 1) for line in lines)
    assert int(headers["content-length"]) == len(body)
    return int(status.split()[1]), headers, json.loads(body)


async def test_the_request_is_answered_with_connected_once_the_router_has_answered() -> None:
    async with edge_and_link() as (edge, link):
        client = await asking(edge, get())
        opened = await link.next("opened")
        assert opened.protocol == "trunkline.v1.events"
        assert opened.remote_ip == "127.0.0.1"
        assert client.reader._buffer == b""  # type: ignore[attr-defined]
        await link.accept(opened=opened)
        head = await client.head()
        assert head.startswith("HTTP/1.1 200 OK\r\n")
        assert "content-type: text/event-stream\r\n" in head
        assert "cache-control: no-store\r\n" in head
        assert "connection: close\r\n" in head
        assert (await client.next()).type == "connected"
        assert edge.runtime.core.handshakes.is_empty


async def test_events_are_the_frames_that_websockets_get() -> None:
    async with edge_and_link() as (edge, link):
        client, _ = await listening(edge, link)
        ws, _ = await accepted(edge, link, topic=0)
        for seq in range(1, 4):
            before = edge.runtime.core.counts.deliveries
            await link.publish(seq, f"line one\nline two {seq}")
            event = await client.next()
            assert event.type == "message"
            assert json.loads(event.data) == await hears(ws)
            # A heartbeat may come between, after the first second.
            assert edge.runtime.core.counts.deliveries - before in (2, 3)
        await ws.close()


@pytest.mark.parametrize("version", ["1.0", "1.1"])
async def test_old_and_new_clients_are_answered(version: str) -> None:
    async with edge_and_link() as (edge, link):
        # HTTP/1.0 is spoken by proxies, so it takes a token even on this machine.
        await link.send(RouterEntry(policy=policy("t", tokens=["s3cret"])))
        await edge.until(lambda: edge.runtime.tenants.can_verify_tokens("t"))
        request = get(f"{QUERY}&token=s3cret").replace(b"HTTP/1.1", f"HTTP/{version}".encode())
        client = await asking(edge, request)
        await link.accept()
        assert "200 OK" in await client.head()


async def test_on_a_connection_that_was_used_for_pages_before_it_is_an_event_stream_too() -> None:
    async with edge_and_link() as (edge, link):
        reader, writer = await edge.raw()
        for _ in range(2):
            writer.write(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
            head = await reader.readuntil(b"\r\n\r\n")
            length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
            assert json.loads(await reader.readexactly(length))["status"] == "ok"
        request = get()
        for cut in (request[:7], request[7:40], request[40:]):
            writer.write(cut)
            await asyncio.sleep(0)
        client = Listening(reader, writer)
        await link.accept()
        assert "text/event-stream" in await client.head()
        assert (await client.next()).type == "connected"


async def test_on_a_connection_that_was_used_for_pages_before_it_is_a_websocket_too() -> None:
    async with edge_and_link() as (edge, link):
        reader, writer = await edge.raw()
        writer.write(b"GET /nothing HTTP/1.1\r\nHost: x\r\n\r\n")
        assert b" 404 " in await reader.readuntil(b"\r\n")
        writer.write(upgrade())
        await link.accept()
        await asyncio.wait_for(reader.readuntil(b"HTTP/1.1 101 "), PATIENCE_S)


@pytest.mark.parametrize(
    ("request_", "status", "reason"),
    [
        (get("nonsense=1"), 400, "INVALID_ADDRESS"),
        (get(extra="Last-Event-ID: x\r\n"), 400, "INVALID_ADDRESS"),
        (get("tenant=%ff"), 400, "INVALID_ADDRESS"),
        (get(method="POST"), 405, "METHOD_NOT_ALLOWED"),
        (get(extra="Content-Length: 1\r\n"), 400, "INVALID_ARGUMENT"),
        (get(extra="Transfer-Encoding: chunked\r\n"), 400, "INVALID_ARGUMENT"),
        (b"GET /v1/events HTTP/1.1\r\n\r\n", 400, "MALFORMED_REQUEST"),
        (b"GET /v1/events HTTP/1.1\r\nHost: x\r\nbroken\r\n\r\n", 400, "MALFORMED_REQUEST"),
    ],
)
async def test_a_request_that_cannot_be_served_is_answered_by_a_status(
    request_: bytes, status: int, reason: str
) -> None:
    async with running_edge("127.0.0.1:1") as edge:
        client = await asking(edge, request_)
        code, headers, content = refusal(await answer(client.reader))
        assert (code, content["details"][0]["reason"]) == (status, reason)
        assert headers.get("allow") == ("GET, OPTIONS" if status == 405 else None)
        assert edge.runtime.core.handshakes.is_empty


async def test_a_head_is_answered_without_a_body() -> None:
    async with running_edge("127.0.0.1:1") as edge:
        client = await asking(edge, get(method="HEAD"))
        response = await answer(client.reader)
        assert response.startswith(b"HTTP/1.1 405 ")
        assert response.endswith(b"\r\n\r\n")


@pytest.mark.parametrize(
    ("code", "reason", "status"),
    [(4504, "UNKNOWN_TENANT", 404), (4500, "UNAUTHORIZED", 401), (1013, "OVERLOADED", 429)],
)
async def test_a_refusal_by_the_router_is_a_status(code: int, reason: str, status: int) -> None:
    async with edge_and_link() as (edge, link):
        client = await asking(edge, get())
        opened = await link.next("opened")
        await link.close(opened.connection, code, reason)
        found, headers, content = refusal(await answer(client.reader))
        assert (found, content["details"][0]["reason"]) == (status, reason)
        assert headers.get("retry-after") == ("1" if status == 429 else None)
        await link.next("closed")
        assert not edge.runtime.core.connections


async def test_who_asks_while_there_is_no_router_is_told_when_to_try_again() -> None:
    async with running_edge("127.0.0.1:1", handshake_timeout_s=under_load(0.1)) as edge:
        client = await asking(edge, get())
        status, headers, _ = refusal(await answer(client.reader))
        assert (status, headers["retry-after"]) == (503, "1")


async def test_who_comes_again_by_itself_is_not_stopped_by_what_will_pass() -> None:
    async with running_edge("127.0.0.1:1", handshake_timeout_s=under_load(0.1)) as edge:
        client = await asking(edge, get(extra="Last-Event-ID: e.1~e.1~e.1~e.1\r\n"))
        assert "200 OK" in await client.head()
        [event] = await client.rest()
        assert event.type == "closing"
        assert json.loads(event.data)["reason"] == "ROUTER_UNAVAILABLE"
        assert client.events.retry_ms == 1000


async def test_who_comes_again_by_itself_is_stopped_by_what_will_not_pass() -> None:
    async with edge_and_link() as (edge, link):
        client = await asking(edge, get(extra="Last-Event-ID: e.1~e.1~e.1~e.1\r\n"))
        opened = await link.next("opened")
        assert [each.position.seq for each in opened.resume.positions] == [1] * 4
        await link.close(opened.connection, 4504, "UNKNOWN_TENANT")
        assert refusal(await answer(client.reader))[0] == 404


async def test_more_than_there_may_be_on_their_way_in_are_answered_429() -> None:
    async with running_edge("127.0.0.1:1", max_handshakes=1) as edge:
        first = await asking(edge, get())
        await edge.until(lambda: len(edge.runtime.core.handshakes) == 1)
        second = await asking(edge, get())
        assert refusal(await answer(second.reader))[0] == 429
        first.writer.close()
        await edge.until(lambda: edge.runtime.core.handshakes.has_room)


async def test_a_close_is_the_last_event_and_the_end() -> None:
    async with edge_and_link() as (edge, link):
        client, number = await listening(edge, link)
        await link.publish(1)
        await link.close(number, 4501, "CLOSED_BY_BACKEND")
        assert [event.type for event in await client.rest()] == ["message", "closing"]
        await link.next("closed")
        assert edge.runtime.core.counts.closed_by == {"CLOSED_BY_BACKEND": 1}


async def test_an_edge_that_stops_tells_its_listeners_when_to_come_back() -> None:
    async with edge_and_link() as (edge, link):
        client, _ = await listening(edge, link)
        await edge.runtime.close_all()
        [event] = await client.rest()
        assert json.loads(event.data)["reason"] == "RESTARTING"
        assert client.events.retry_ms == 500


@pytest.mark.parametrize("how", ["eof", "close", "reset"])
async def test_a_client_that_leaves_is_gone_at_once(how: str) -> None:
    async with edge_and_link() as (edge, link):
        client, number = await listening(edge, link)
        if how == "eof":
            client.writer.write_eof()
        elif how == "close":
            client.writer.close()
        else:
            reset(client.writer)
        assert (await link.next("closed")).connection == number
        assert not edge.runtime.core.connections
        assert edge.runtime.core.counts.closed_by == {"CLIENT_LOST" if how == "reset" else "CLIENT_LEFT": 1}


async def test_a_client_that_leaves_while_it_waits_leaves_nothing_behind() -> None:
    async with edge_and_link(handshake_timeout_s=3600) as (edge, link):
        client = await asking(edge, get())
        await link.next("opened")
        client.writer.write_eof()
        await link.next("closed")
        assert edge.runtime.core.handshakes.is_empty
        assert edge.runtime.core.sessions.opening == 0


async def test_a_client_that_only_listens_is_kept_and_sent_heartbeats() -> None:
    async with edge_and_link(heartbeat_s=1) as (edge, link):
        client, _ = await listening(edge, link)
        ws, _ = await accepted(edge, link, topic=0)
        while client.events.comments < 5:
            client.inbox += client.events.feed(await asyncio.wait_for(client.reader.read(100), PATIENCE_S))
        await link.publish(1)
        assert (await client.next()).type == "message"
        await ws.close()


async def not_reading(edge: Edge, link: ScriptedLink) -> Listening:
    client, _ = await listening(edge, link, topic=0)
    client.writer.transport.pause_reading()  # type: ignore[attr-defined]
    return client


async def test_a_slow_reader_is_closed_without_delaying_the_others_and_stands_where_it_was() -> None:
    async with edge_and_link(outbox_bytes=1 << 17) as (edge, link):
        fast, _ = await listening(edge, link)
        slow = await not_reading(edge, link)
        seq = 0
        async with asyncio.timeout(PATIENCE_S):
            while not edge.runtime.core.counts.slow_consumers:
                seq += 1
                await link.publish(seq, TEXT)
                assert json.loads((await fast.next()).data)["position"]["seq"] == seq
                assert edge.runtime.core.backpressure.total_bytes <= 1 << 17
        slow.writer.transport.resume_reading()  # type: ignore[attr-defined]
        *messages, closing = await slow.rest()
        assert closing.type == "closing"
        assert json.loads(closing.data)["reason"] == "SLOW_CONSUMER"
        assert [json.loads(event.data)["position"]["seq"] for event in messages] == list(
            range(1, len(messages) + 1)
        )
        assert len(messages) < seq
        assert edge.runtime.core.counts.dropped


async def test_who_takes_nothing_any_longer_is_taken_for_dead() -> None:
    async with edge_and_link(heartbeat_s=1) as (edge, link):
        fast, _ = await listening(edge, link)
        await not_reading(edge, link)
        seq = 0
        while not edge.runtime.core.backpressure.total_bytes:
            seq += 1
            await link.publish(seq, TEXT)
            await fast.next()
        await link.next("closed")
        assert edge.runtime.core.counts.closed_by == {"HEARTBEAT_LOST": 1}


async def test_who_goes_on_sending_is_cut_off() -> None:
    async with edge_and_link() as (edge, link):
        client, _ = await listening(edge, link)
        client.writer.write(b"x" * 1000)
        await link.publish(1)
        assert (await client.next()).type == "message"
        client.writer.write(b"x" * 70_000)
        await link.next("closed")
        assert edge.runtime.core.counts.closed_by == {"CLIENT_BROKE_PROTOCOL": 1}


async def test_a_stock_client_reads_it() -> None:
    async with edge_and_link() as (edge, link), httpx.AsyncClient(trust_env=False) as http:
        accepting = asyncio.ensure_future(link.accept())
        async with http.stream("GET", f"http://{edge.address}/v1/events?{QUERY}") as response:
            await accepting
            assert response.status_code == 200
            await link.publish(1, "hello")
            found: list[str] = []
            async for line in response.aiter_lines():
                found += [line] if line.startswith("event: ") else []
                if len(found) == 2:
                    break
            assert found == ["event: connected", "event: message"]
