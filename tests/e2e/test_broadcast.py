"""Broadcasts to every kind of address."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING

import grpc
import pytest
from trunkline.v1.presence_service_pb2 import CloseConnectionsRequest, ListConnectionsRequest

from tests.e2e.fleet import Fleet, fleet_of
from tests.e2e.grpc_backend import TIMEOUT_S, GrpcBackend, address, reason_of
from tests.e2e.polling import WAIT_S, wait_until
from tests.e2e.recording_client import RecordingClient, frame_text
from tests.validators.history import History
from tests.validators.promises import assert_promises

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from tests.support.processes import Process

#: Agent and conversation of each connected user.
PEOPLE = {
    "ann": ("echo", "group:team"),
    "bob": ("echo", "person:bob"),
    "cid": ("other", "group:team"),
    "dan": ("echo", ""),
}
LEVELS = {
    "demo": {"ann", "bob", "cid", "dan"},
    "demo/echo": {"ann", "bob", "dan"},
    "demo/echo/web": {"ann", "bob", "dan"},
    "demo/echo/qq": set(),
    "demo/echo/web/group:team": {"ann"},
    "demo/echo/web/person:bob": {"bob"},
    "demo/user:cid": {"cid"},
}


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    with fleet_of(tmp_path_factory.mktemp("levels"), edges=2) as started:
        yield started


@pytest.fixture
async def people(fleet: Fleet) -> AsyncIterator[dict[str, RecordingClient]]:
    history = History()
    edges = [process.address for process in fleet.processes[1:]]
    with GrpcBackend(fleet.router.address) as backend:
        # Connections of the previous test end when their edges report it.
        await wait_until(lambda: backend.stats().connections == 0, "no connections are left")
    async with AsyncExitStack() as stack:
        yield {
            name: await stack.enter_async_context(
                RecordingClient(history, f"demo/{name}", edges[index % 2], conversation, agent=agent)
            )
            for index, (name, (agent, conversation)) in enumerate(PEOPLE.items())
        }


@pytest.fixture
def backend(fleet: Fleet, people: dict[str, RecordingClient]) -> Iterator[GrpcBackend]:
    with GrpcBackend(fleet.router.address, people["ann"].history) as calling:
        yield calling


async def assert_received_by(people: dict[str, RecordingClient], expected: set[str], text: str) -> None:
    """Check that exactly the expected clients received the text once."""
    for name, client in people.items():
        if name in expected:
            assert frame_text(await client.next("message")) == text
    for client in people.values():
        await client.send({"type": "ping", "id": "fence"})
        await client.next("pong", id="fence")
        assert not [frame for frame in client.inbox if frame["type"] == "message"]


@pytest.mark.parametrize("to", LEVELS)
async def test_a_broadcast_reaches_exactly_the_connections_of_its_address(
    people: dict[str, RecordingClient], backend: GrpcBackend, to: str
) -> None:
    response = backend.broadcast(to, f"to {to}", f"key {to}")
    assert response.connections == len(LEVELS[to])
    assert response.position.seq == 1
    await assert_received_by(people, LEVELS[to], f"to {to}")
    assert backend.broadcast(to, f"to {to}", f"key {to}") == response
    await assert_received_by(people, set(), "")
    backend.read_logs(to)
    assert_promises(backend.history)


async def test_a_message_to_one_connection_is_not_stored(
    people: dict[str, RecordingClient], backend: GrpcBackend
) -> None:
    request = ListConnectionsRequest(address=address("demo/user:bob"))
    (found,) = backend.presence.ListConnections(request, timeout=TIMEOUT_S).connections
    assert (found.user, found.protocol) == ("bob", "trunkline.v1.json")
    response = backend.broadcast(f"demo/connection:{found.connection_id}", "psst")
    assert not response.HasField("position")
    await assert_received_by(people, {"bob"}, "psst")


async def test_an_ephemeral_message_is_not_stored(
    people: dict[str, RecordingClient], backend: GrpcBackend
) -> None:
    before = len(backend.messages("demo/echo"))
    assert backend.broadcast("demo/echo", "fleeting", ephemeral=True).connections == 3
    await assert_received_by(people, LEVELS["demo/echo"], "fleeting")
    assert len(backend.messages("demo/echo")) == before


async def test_an_address_without_connections_is_rejected_only_if_one_is_required(
    backend: GrpcBackend,
) -> None:
    to = "demo/echo/qq/person:zoe"
    with pytest.raises(grpc.RpcError) as refusal:
        backend.broadcast(to, "anybody?", require_connection=True)
    assert refusal.value.code() is grpc.StatusCode.NOT_FOUND
    assert reason_of(refusal.value) == "NO_ACTIVE_CONNECTION"
    assert "No active connections for agent echo on platform qq" in refusal.value.details()
    assert backend.messages(to) == []
    assert backend.broadcast(to, "for later").connections == 0
    assert len(backend.messages(to)) == 1


async def test_a_closed_connection_is_gone_before_its_dead_peer_answers_the_close(
    fleet: Fleet, people: dict[str, RecordingClient], backend: GrpcBackend
) -> None:
    to = "demo/echo/qq/person:dead"
    reader, writer = await connect_dead_peer(fleet.edges[0], to)
    try:
        assert backend.broadcast(to, "alive?", require_connection=True).connections == 1
        request = CloseConnectionsRequest(address=address(to), reason="maintenance")
        assert backend.close_connections(request) == 1
        await wait_until(lambda: backend.stats().connections == len(PEOPLE), "the connection is gone")
        with pytest.raises(grpc.RpcError) as refusal:
            backend.broadcast(to, "anybody?", require_connection=True)
        assert reason_of(refusal.value) == "NO_ACTIVE_CONNECTION"
        assert b"CLOSED_BY_BACKEND" in await reader.readuntil(b"CLOSED_BY_BACKEND")
        with pytest.raises(TimeoutError):
            # The edge still waits for the peer, which neither answers the close nor hangs up.
            async with asyncio.timeout(0.05):
                await reader.readuntil(b"never sent")
    finally:
        writer.close()


async def connect_dead_peer(edge: Process, home: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Connect a WebSocket whose peer answers nothing from then on."""
    tenant, agent, platform, conversation = home.split("/")
    reader, writer = await asyncio.open_connection(*edge.address.split(":"))
    query = f"tenant={tenant}&agent={agent}&platform={platform}&conversation={conversation}"
    writer.write(
        f"GET /v1/connect?{query} HTTP/1.1\r\nHost: {edge.address}\r\nUpgrade: websocket\r\n"
        "Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
        "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n".encode()
    )
    async with asyncio.timeout(WAIT_S):
        await reader.readuntil(b'"type":"connected"')
    return reader, writer


async def test_the_same_key_with_a_different_text_is_rejected(backend: GrpcBackend) -> None:
    backend.broadcast("demo/user:zoe", "words", "the key")
    with pytest.raises(grpc.RpcError) as refusal:
        backend.broadcast("demo/user:zoe", "other words", "the key")
    assert refusal.value.code() is grpc.StatusCode.ALREADY_EXISTS
    assert reason_of(refusal.value) == "IDEMPOTENCY_MISMATCH"
