"""WatchConnections over HTTP, with a scripted router."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import grpc.aio
import pytest
import trunkline_edge.http.server_streaming
from trunkline.v1.presence_service_pb2 import (
    CONNECTION_EVENT_OPENED,
    WatchConnectionsRequest,
    WatchConnectionsResponse,
)
from trunkline.v1.presence_service_pb2_grpc import (
    PresenceServiceServicer,
    add_PresenceServiceServicer_to_server,
)

from tests.edge.transport.edge_loopback import PATIENCE_S, Edge, running_edge
from tests.support.event_source import Event, EventReader


class ScriptedPresence(PresenceServiceServicer):
    """Serves one watch with the responses that the test queues."""

    def __init__(self) -> None:
        self.asked: asyncio.Future[WatchConnectionsRequest] = asyncio.get_running_loop().create_future()
        self.responses: asyncio.Queue[WatchConnectionsResponse | None] = asyncio.Queue()
        self.left = asyncio.Event()

    async def WatchConnections(self, request: WatchConnectionsRequest, context: Any) -> None:  # noqa: N802
        self.asked.set_result(request)
        try:
            while (response := await self.responses.get()) is not None:
                await context.write(response)
            await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "enough")
        finally:
            self.left.set()


@asynccontextmanager
async def watched() -> AsyncIterator[tuple[Edge, ScriptedPresence]]:
    presence = ScriptedPresence()
    server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
    add_PresenceServiceServicer_to_server(presence, server)
    address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    await server.start()
    try:
        async with running_edge(address) as started:
            yield started, presence
    finally:
        await server.stop(None)


async def watching(started: Edge) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    reader, writer = await started.raw()
    path = "/v1/tenants/demo/connections:watch?address.agent=echo"
    writer.write(f"GET {path} HTTP/1.0\r\nHost: x\r\nLast-Event-ID: 7\r\n\r\n".encode())
    return reader, writer


def change(ident: str) -> WatchConnectionsResponse:
    response = WatchConnectionsResponse()
    response.changes.add(event=CONNECTION_EVENT_OPENED).connection.connection_id = ident
    return response


async def events(reader: asyncio.StreamReader, count: int) -> list[Event]:
    found: list[Event] = []
    events = EventReader()
    async with asyncio.timeout(PATIENCE_S):
        while len(found) < count:
            data = await reader.read(4096)
            assert data, found
            found += events.feed(data)
    return found


async def test_each_response_is_an_event_with_a_number() -> None:
    async with watched() as (started, presence):
        reader, _ = await watching(started)
        request = await asyncio.wait_for(presence.asked, PATIENCE_S)
        assert (request.address.tenant, request.address.agent) == ("demo", "echo")
        presence.responses.put_nowait(change("a"))
        presence.responses.put_nowait(change("b"))
        head = (await reader.readuntil(b"\r\n\r\n")).lower()
        assert b"content-type: text/event-stream" in head
        one, two = await events(reader, 2)
        assert [(each.type, each.last_id) for each in (one, two)] == [
            ("watch_connections", "1"),
            ("watch_connections", "2"),
        ]
        [sent] = json.loads(one.data)["changes"]
        assert sent["event"] == "CONNECTION_EVENT_OPENED"
        assert sent["connection"]["connectionId"] == "a"


async def test_who_watches_where_nobody_is_is_answered_and_sent_heartbeats(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(trunkline_edge.http.server_streaming, "FIRST_WAIT_S", 0.05)
    monkeypatch.setattr(trunkline_edge.http.server_streaming, "HEARTBEAT_S", 0.05)
    async with watched() as (started, presence):
        reader, _ = await watching(started)
        async with asyncio.timeout(PATIENCE_S):
            for _ in range(3):
                await reader.readuntil(b": ping\n\n")
        presence.responses.put_nowait(change("a"))
        assert [event.last_id for event in await events(reader, 1)] == ["1"]


async def test_what_fails_before_anything_was_told_is_a_status() -> None:
    async with watched() as (started, presence):
        presence.responses.put_nowait(None)
        reader, _ = await watching(started)
        response = await asyncio.wait_for(reader.read(), PATIENCE_S)
        assert response.split()[1] == b"429"
        assert json.loads(response.partition(b"\r\n\r\n")[2])["message"] == "enough"


async def test_what_fails_later_is_the_last_event() -> None:
    async with watched() as (started, presence):
        presence.responses.put_nowait(change("a"))
        presence.responses.put_nowait(None)
        reader, _ = await watching(started)
        *_, error = await events(reader, 2)
        assert error.type == "error"
        assert json.loads(error.data)["code"] == grpc.StatusCode.RESOURCE_EXHAUSTED.value[0]
        assert await asyncio.wait_for(reader.read(), PATIENCE_S) == b""


@pytest.mark.parametrize("sent", [0, 1])
async def test_a_watch_ends_with_its_client(sent: int) -> None:
    async with watched() as (started, presence):
        reader, writer = await watching(started)
        await asyncio.wait_for(presence.asked, PATIENCE_S)
        if sent:
            presence.responses.put_nowait(change("a"))
            await events(reader, 1)
        writer.close()
        await asyncio.wait_for(presence.left.wait(), PATIENCE_S)
