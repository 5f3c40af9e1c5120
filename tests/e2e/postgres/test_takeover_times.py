"""Clients get their acks soon after a router was killed or frozen, on the sockets that they have."""

from __future__ import annotations

import asyncio
import json
import signal
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager

import pytest
import websockets
from websockets.asyncio.client import ClientConnection

from tests.e2e.postgres.router_faults import owner_of
from tests.e2e.postgres.standby_fleet import StandbyFleet, standby_fleet
from tests.support.patience import patient, under_load
from tests.support.postgres import PostgresServer
from tests.support.processes import Process, linux

pytestmark = [linux, pytest.mark.long]

CONNECTIONS = 1_000
LEASE_S = 5.0
#: Bounds of the 99th percentile of the time from the signal to the first ack on the same socket.
KILLED_S = 3.0
FROZEN_S = 7.0
#: Connections that are opened at a time.
OPENING = 50


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StandbyFleet]:
    with (
        PostgresServer.create() as server,
        standby_fleet(
            tmp_path_factory.mktemp("takeover"),
            server.create_schema("installation"),
            TRUNKLINE_OWNERSHIP_LEASE_S=str(LEASE_S),
        ) as started,
    ):
        yield started


@asynccontextmanager
async def connected(edge: str) -> AsyncIterator[list[ClientConnection]]:
    """Connect clients, each to a conversation of its own."""
    opening = asyncio.Semaphore(OPENING)
    async with AsyncExitStack() as stack:

        async def open_one(number: int) -> ClientConnection:
            query = f"tenant=demo&agent=none&platform=web&conversation=person:u{number}&user=u{number}"
            async with opening:
                client = await stack.enter_async_context(
                    websockets.connect(
                        f"ws://{edge}/v1/connect?{query}", compression=None, ping_interval=None, proxy=None
                    )
                )
                assert json.loads(await client.recv())["type"] == "connected"
                return client

        yield await asyncio.gather(*map(open_one, range(CONNECTIONS)))


async def acked_at(client: ClientConnection, ident: str) -> float:
    """Send a message; return the time of its ack."""
    part = {"type": "text", "text": "hello"}
    await client.send(json.dumps({"type": "message", "id": ident, "parts": [part]}))
    while True:
        frame = json.loads(await client.recv())
        assert frame["type"] not in ("error", "closing"), frame
        if frame["type"] == "ack" and frame["id"] == ident:
            return time.monotonic()


async def time_of_takeover(fleet: StandbyFleet, owner: Process, fault: signal.Signals) -> float:
    """Return the 99th percentile of the time from the fault to the first ack, over all connections."""
    async with asyncio.timeout(patient(60)), connected(fleet.edges[0].address) as clients:
        await asyncio.gather(*(acked_at(client, "before") for client in clients))
        began = time.monotonic()
        owner.signal(fault)
        times = await asyncio.gather(*(acked_at(client, "after") for client in clients))
    taken = sorted(each - began for each in times)
    print(f"{fault.name}: p50 {taken[CONNECTIONS // 2]:.2f} s, last {taken[-1]:.2f} s")  # noqa: T201
    return taken[CONNECTIONS * 99 // 100]


async def test_acks_come_soon_after_the_owner_was_frozen(fleet: StandbyFleet) -> None:
    owner = await owner_of(fleet)
    try:
        assert await time_of_takeover(fleet, owner, signal.SIGSTOP) <= under_load(FROZEN_S)
    finally:
        owner.signal(signal.SIGCONT)


async def test_acks_come_soon_after_the_owner_and_its_database_sessions_are_gone(fleet: StandbyFleet) -> None:
    owner = await owner_of(fleet)
    assert await time_of_takeover(fleet, owner, signal.SIGKILL) <= under_load(KILLED_S)
    await asyncio.to_thread(fleet.start_named, fleet.name_of(owner))
