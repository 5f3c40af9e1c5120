"""An edge killed with SIGKILL: its clients resume on another edge, and the router drops its connections."""

from __future__ import annotations

import asyncio
import signal
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING

import pytest

from tests.e2e.fleet import Fleet, fleet_of
from tests.e2e.grpc_backend import GrpcBackend
from tests.e2e.polling import wait_until
from tests.e2e.promise_checks import assert_promises_kept, wait_until_caught_up
from tests.e2e.recording_client import RecordingClient
from tests.e2e.roaming_clients import listen_and_reconnect, send_and_reconnect
from tests.validators.history import History

if TYPE_CHECKING:
    from collections.abc import Iterator

LEASE_S = "1"


@pytest.fixture
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    with fleet_of(tmp_path_factory.mktemp("edges"), edges=2, TRUNKLINE_LEASE_S=LEASE_S) as started:
        yield started


def edges_of(fleet: Fleet) -> list[str]:
    return [process.address for process in fleet.processes if process.name == "edge"]


async def test_clients_of_a_killed_edge_resume_on_another_edge_without_a_gap(fleet: Fleet) -> None:
    history, stop = History(), asyncio.Event()
    edges = edges_of(fleet)
    doomed = next(process for process in fleet.processes if process.name == "edge")
    async with AsyncExitStack() as stack:
        clients = [
            await stack.enter_async_context(
                RecordingClient(history, f"demo/{name}", edges[index % 2], "group:hot")
            )
            for index, name in enumerate(("ann", "bob", "cid", "dan"))
        ]
        roaming = [asyncio.create_task(send_and_reconnect(client, edges, stop)) for client in clients[:3]]
        roaming.append(asyncio.create_task(listen_and_reconnect(clients[3], edges, stop)))
        for count in (100, 250):
            await wait_until(lambda: clients[1].seq() > count, f"{count} messages")  # noqa: B023
            doomed.kill()
            again = {"TRUNKLINE_EDGE_LISTEN": doomed.address}
            doomed = await asyncio.to_thread(lambda: fleet.start_edge(**again))  # noqa: B023
        await wait_until(lambda: clients[1].seq() > 400, "400 messages")
        stop.set()
        await asyncio.gather(*roaming)
        await wait_until_caught_up(fleet, clients)
        sessions = {client.session for client in clients}
        assert len({e.session for e in history.events if hasattr(e, "session")}) > len(sessions), (
            "somebody moved"
        )
        assert_promises_kept(fleet, history, clients)


async def test_connections_of_a_dead_edge_are_dropped_within_its_lease(fleet: Fleet) -> None:
    history = History()
    edges = edges_of(fleet)
    async with AsyncExitStack() as stack:
        for number in range(5):
            client = RecordingClient(history, f"demo/user{number}", edges[0])
            client.breaks_expected = True
            await stack.enter_async_context(client)
        with GrpcBackend(fleet.router.address) as backend:
            assert backend.stats().connections == 5
            next(process for process in fleet.processes if process.name == "edge").kill()
            await wait_until(lambda: backend.stats().connections == 0, "the count is 0", float(LEASE_S) + 2.5)
            stats = backend.stats()
            assert (stats.users, stats.topics, stats.connections_closed) == (0, 0, 5)


async def test_an_edge_suspended_beyond_its_lease_relinks_with_its_clients(fleet: Fleet) -> None:
    history = History()
    edges = edges_of(fleet)
    frozen = next(process for process in fleet.processes if process.name == "edge")
    async with (
        RecordingClient(history, "demo/ann", edges[0], "group:still") as ann,
        RecordingClient(history, "demo/bob", edges[1], "group:still") as bob,
    ):
        with GrpcBackend(fleet.router.address) as backend:
            frozen.signal(signal.SIGSTOP)
            await wait_until(lambda: backend.stats().connections == 1, "the frozen edge is forgotten")
            for number in range(20):
                await bob.say(f"while ann's edge stands still {number}")
            await wait_until(lambda: not bob.unacked, "bob's messages are acked")
            frozen.signal(signal.SIGCONT)
            await wait_until(lambda: backend.stats().connections == 2, "the edge is back")
        await wait_until_caught_up(fleet, [ann, bob])
        assert not ann.closed
        assert_promises_kept(fleet, history, [ann, bob])
