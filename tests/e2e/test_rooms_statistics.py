"""AnsFlow: the monitor, and statistics that equal the real connections after any churn."""

from __future__ import annotations

import asyncio
import json
import random
from collections import Counter
from contextlib import AsyncExitStack, aclosing
from typing import TYPE_CHECKING, Any

import pytest
from trunkline.v1.message_pb2 import CustomPart, Part
from trunkline.v1.presence_service_pb2 import CONNECTION_EVENT_CLOSED, CloseConnectionsRequest
from trunkline_client import Address
from trunkline_client import Backend as Watching

from tests.e2e.fleet import Fleet, fleet_of, metric
from tests.e2e.grpc_backend import GrpcBackend, address
from tests.e2e.polling import wait_until
from tests.e2e.rooms import PLATFORM, closed_by, health, leave, member, reset_connection, room
from tests.validators.history import History

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.e2e.recording_client import RecordingClient
    from tests.support.processes import Process

MONITOR = room("global_monitor")
ROOMS = ("one", "two", "three")
USERS = ("ann", "bob", "cid", "dan")


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    with fleet_of(tmp_path_factory.mktemp("figures"), edges=2) as started:
        yield started


async def monitor(router: str) -> None:
    """Backend that greets each monitor connection with the live count."""
    async with Watching(router) as backend, aclosing(backend.watch_connections(address(MONITOR))) as changes:
        async for batch in changes:
            for change in batch:
                if change.event != CONNECTION_EVENT_CLOSED:
                    there = await backend.count_connections(address(MONITOR))
                    status = {"status": "connected", "active_connections": there.connections}
                    to = Address(tenant="demo", connection=change.connection.connection_id)
                    part = Part(custom=CustomPart(name="system_status", json=json.dumps(status)))
                    await backend.broadcast(to, [part])


async def test_a_monitor_connection_receives_connected_and_then_the_live_count(
    fleet: Fleet,
) -> None:
    history = History()
    watching = asyncio.create_task(monitor(fleet.router.address))
    async with AsyncExitStack() as stack:
        backend = stack.enter_context(GrpcBackend(fleet.router.address))

        async def live_count(client: RecordingClient) -> Any:
            (part,) = (await client.next("message"))["parts"]
            assert part["name"] == "system_status"
            return json.loads(part["json"])["active_connections"]

        first = member(history, "ann", fleet.processes[1], "global_monitor")
        assert (await first.connect())["type"] == "connected"
        assert await live_count(first) == backend.count(MONITOR)[0] == 1
        for number, edge in enumerate((*fleet.processes[1:], *fleet.processes[1:]), 2):
            client = member(history, f"u{number}", edge, "global_monitor")
            assert (await client.connect())["type"] == "connected"
            assert await live_count(client) == backend.count(MONITOR)[0] == number
            stack.push_async_callback(client.leave)
        reset_connection(first)
        await wait_until(lambda: backend.count(MONITOR) == (4, 4), "it counts who is there")
        late = await stack.enter_async_context(member(history, "zoe", fleet.processes[1]))
        await late.subscribe("global_monitor")
        assert await live_count(late) == backend.count(MONITOR)[0] == 5
    watching.cancel()
    with GrpcBackend(fleet.router.address) as backend:
        await wait_until(lambda: not backend.stats().connections, "all are gone")


class Churn:
    """Random joins and leaves, and the expected counts."""

    def __init__(self, fleet: Fleet, backend: GrpcBackend, seed: int) -> None:
        self.draw = random.Random(seed)
        self.backend = backend
        self.edges = fleet.processes[1:]
        self.history = History()
        self.there: dict[RecordingClient, tuple[Process, set[str]]] = {}
        self.ids: dict[RecordingClient, str] = {}
        self.opened: Counter[str] = Counter()
        self.ended: Counter[tuple[str, str]] = Counter()

    async def come(self) -> None:
        edge = self.draw.choice(self.edges)
        home = self.draw.choice(["", *ROOMS])
        client = member(self.history, self.draw.choice(USERS), edge, home)
        connected = await client.connect()
        self.ids[client] = connected["connection_id"]
        self.there[client] = (edge, {home} - {""})
        self.opened[edge.address] += 1

    async def join(self) -> None:
        client, (_, rooms) = self.draw.choice(list(self.there.items()))
        name = self.draw.choice(ROOMS)
        await client.subscribe(name)
        rooms.add(name)

    async def part(self) -> None:
        client, (_, rooms) = self.draw.choice(list(self.there.items()))
        joined = rooms - {client.conversation.partition(":")[2]}
        if joined:
            name = self.draw.choice(sorted(joined))
            await leave(client, name)
            rooms.discard(name)

    async def go(self) -> None:
        client = self.draw.choice(list(self.there))
        edge, _ = self.there.pop(client)
        how = self.draw.choice(
            ["CLIENT_LEFT", "CLIENT_LOST", "DISCONNECTED", "CLOSED_BY_BACKEND", "CLIENT_BROKE_PROTOCOL"]
        )
        if how == "CLIENT_LEFT":
            await client.leave()
        elif how == "CLIENT_LOST":
            self.draw.choice([reset_connection, lambda client: client.abort()])(client)
        elif how == "DISCONNECTED":
            await client.send({"type": "disconnect"})
        elif how == "CLOSED_BY_BACKEND":
            to = address(f"demo/connection:{self.ids[client]}")
            self.backend.close_connections(CloseConnectionsRequest(address=to))
        else:
            assert client._ws is not None
            client._ws.transport.write(b"\xff" * 20)
        await wait_until(lambda: client.closed, "the connection is closed")
        self.ended[edge.address, how] += 1

    @property
    def rooms(self) -> dict[str, int]:
        return dict(sorted(Counter(room(r) for _, rooms in self.there.values() for r in rooms).items()))

    async def agrees(self) -> None:
        """Check all statistics against the expected counts."""
        backend, there = self.backend, self.there
        await wait_until(lambda: backend.stats().connections == len(there), "the router knows")
        users = Counter(client.user for client in there)
        for place in ("demo", "demo/ansflow", PLATFORM):
            assert backend.count(place) == (len(there), len(users))
        assert {user: backend.count(f"demo/user:{user}") for user in USERS} == {
            user: (users[user], min(users[user], 1)) for user in USERS
        }
        for name in ROOMS:
            inside = [client for client, (_, rooms) in there.items() if name in rooms]
            assert backend.count(room(name)) == (len(inside), len({client.user for client in inside}))
            assert len(backend.connections(room(name))) == len(inside)
        heard = backend.topic_counts("demo", page_size=self.draw.choice([1, 2, 3, 0]))
        assert {name: n for name, n in heard.items() if "/group:" in name} == self.rooms
        everywhere = {PLATFORM: len(there)} if there else {}
        assert list(backend.topic_counts(PLATFORM).items()) == list((everywhere | self.rooms).items())
        assert {name.partition("user:")[2]: n for name, n in heard.items() if "user:" in name} == dict(users)
        stats = backend.stats()
        assert (stats.users, stats.topics) == (len(users), len(heard))
        for edge in self.edges:
            self.edge_agrees(edge)

    def edge_agrees(self, edge: Process) -> None:
        ended = {how: count for (where, how), count in self.ended.items() if where == edge.address}
        figures = health(edge)
        here = sum(1 for where, _ in self.there.values() if where is edge)
        assert figures["connections"] == metric(edge, "trunkline_edge_connections") == here
        assert figures["connections_opened"] - figures["connections_closed"] == here
        assert figures["connections_opened"] == self.opened[edge.address]
        assert figures["closed_by"] == closed_by(edge) == dict(sorted(ended.items()))
        assert figures["deliveries"] == metric(edge, "trunkline_edge_deliveries_total")
        failed = ended.get("CLIENT_LOST", 0) + ended.get("CLIENT_BROKE_PROTOCOL", 0)
        assert figures["disconnect_rate"] == pytest.approx(failed / self.opened[edge.address], abs=1e-6)


@pytest.mark.parametrize("seed", [1, 2])
async def test_statistics_equal_the_real_connections_after_any_churn(
    tmp_path_factory: pytest.TempPathFactory, seed: int
) -> None:
    with (
        fleet_of(tmp_path_factory.mktemp("churn"), edges=2) as fleet,
        GrpcBackend(fleet.router.address) as backend,
    ):
        churn = Churn(fleet, backend, seed)
        for round_ in range(3):
            for _ in range(8):
                await churn.come()
            for _ in range(40):
                steps = [churn.come, churn.join, churn.join, churn.part, churn.go]
                await churn.draw.choice(steps)() if churn.there else await churn.come()
            await churn.agrees()
            if round_ == 1:
                await fleet.restart_router()
                await wait_until(
                    lambda: backend.stats().connections == len(churn.there), "all are known again"
                )
        stats = backend.stats()
        assert stats.connections_opened - stats.connections_closed == len(churn.there)
        for client in list(churn.there):
            reset_connection(client)
            edge, _ = churn.there.pop(client)
            churn.ended[edge.address, "CLIENT_LOST"] += 1
        await churn.agrees()
        assert backend.topic_counts("demo") == {}
