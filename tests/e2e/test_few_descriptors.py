"""Processes with few file descriptors serve on when strangers occupy them."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from typing import TYPE_CHECKING

import grpc
import pytest

from tests.e2e.grpc_backend import GrpcBackend
from tests.e2e.recording_client import RecordingClient
from tests.router.rpc.http2_socket import Http2Socket
from tests.support.patience import patient
from tests.support.processes import Process
from tests.validators.history import History

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

DESCRIPTORS = 64
STRANGERS = 60


def start(name: str, **env: str) -> Process:
    """Start a process that cannot have more than DESCRIPTORS."""
    limited = ["sh", "-c", f'ulimit -n {DESCRIPTORS} && exec "$0" "$@"', sys.executable]
    return Process.start([*limited, "-m", f"trunkline_{name}", "serve"], env, name=name)


@pytest.fixture
def router(tmp_path: Path) -> Iterator[Process]:
    env = {
        "TRUNKLINE_ROUTER_LISTEN": "127.0.0.1:0",
        "TRUNKLINE_DATA_DIR": str(tmp_path),
        "TRUNKLINE_TENANTS": "demo",
        # For a quick test; a router with so few connections waits 6 s.
        "TRUNKLINE_CONNECTION_IDLE_S": "1",
    }
    with start("router", **env) as process:
        yield process


@pytest.fixture
def edge(router: Process) -> Iterator[Process]:
    with start("edge", TRUNKLINE_EDGE_LISTEN="127.0.0.1:0", TRUNKLINE_ROUTER=router.address) as process:
        yield process


async def stranger(address: str) -> Http2Socket | None:
    """An idle connection; None if the router does not accept it."""
    try:
        return await Http2Socket.connect(address)
    except (OSError, asyncio.IncompleteReadError):
        return None


def wait_for_response(backend: GrpcBackend) -> None:
    """Call the router until it answers."""
    until = time.monotonic() + patient(20)
    while True:
        try:
            assert backend.stats().connections == 1
        except grpc.RpcError:
            assert time.monotonic() < until
            time.sleep(0.1)
        else:
            return


async def test_idle_http2_connections_do_not_lock_a_router_out(router: Process, edge: Process) -> None:
    strangers = [found for _ in range(STRANGERS) if (found := await stranger(router.address))]
    assert len(strangers) < STRANGERS
    async with RecordingClient(History(), "demo/ann", edge.address) as ann:
        await ann.next("ack", id=await ann.say("the link is kept"))
        with GrpcBackend(router.address) as backend:
            await asyncio.to_thread(wait_for_response, backend)
        await ann.next("ack", id=await ann.say("the link is still kept"))
    for each in strangers:
        await each.close()
    lines = [json.loads(line) for line in router.stderr.splitlines()]
    assert not [line for line in lines if line["event"] == "link ended"]
    assert [line["limit"] for line in lines if "remedy" in line] == [DESCRIPTORS]


HEAD = b"POST /v1/tenants/demo/messages HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
UPGRADE = (
    b"Host: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)
SLOW = {
    "half a head": HEAD,
    "half a body": HEAD + b"Content-Length: 100\r\n\r\n{",
    "half a body of chunks": HEAD + b"Transfer-Encoding: chunked\r\n\r\n1\r\n{\r\n",
    "kept": b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "half a head behind a request": b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n" + HEAD,
    "half a handshake of TLS": b"\x16\x03",
    "nothing": b"",
    "a refused WebSocket that is not closed": b"GET /nothing HTTP/1.1\r\n" + UPGRADE,
    "a WebSocket without its first message": b"GET /v1/connect?tenant=demo&auth=frame HTTP/1.1\r\n" + UPGRADE,
}


async def test_slow_http_does_not_lock_clients_out_of_an_edge(router: Process, edge: Process) -> None:
    host, _, port = edge.address.rpartition(":")
    async with RecordingClient(History(), "demo/ann", edge.address) as ann:
        strangers = []
        for number in range(STRANGERS):
            reader, writer = await asyncio.open_connection(host, int(port))
            writer.write(list(SLOW.values())[number % len(SLOW)])
            strangers.append((reader, writer))
        await ann.next("ack", id=await ann.say("I am served on"))
        async with RecordingClient(History(), "demo/ben", edge.address) as ben:
            await ben.next("ack", id=await ben.say("and I can still connect"))
        async with asyncio.timeout(patient(10)):
            reader, writer = await asyncio.open_connection(host, int(port))
            writer.write(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
            answer = await reader.read()
        strangers.append((reader, writer))
        assert answer.startswith((b"HTTP/1.1 200 ", b"HTTP/1.1 503 "))
        for _, writer in strangers:
            writer.transport.abort()
    lines = [json.loads(line) for line in edge.stderr.splitlines()]
    assert not [line for line in lines if line["level"] == "error"]
