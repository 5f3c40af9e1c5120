"""Presence over plain HTTP: present connections, then joins and leaves."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING

import httpx
import pytest

from tests.e2e.fleet import Fleet, fleet_of
from tests.e2e.polling import wait_until
from tests.e2e.recording_client import RecordingClient
from tests.e2e.recording_event_client import RecordingEventClient
from tests.support.event_source import Event, EventReader
from tests.support.patience import patient
from tests.validators.history import History

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    with fleet_of(tmp_path_factory.mktemp("watch")) as started:
        yield started


class Watching:
    """Watches the connections of an agent."""

    def __init__(self, edge: str, tenant: str = "demo") -> None:
        self._url = f"http://{edge}/v1/tenants/{tenant}/connections:watch"
        self.events: list[Event] = []
        self.status = 0

    async def run(self) -> None:
        timeout = httpx.Timeout(patient(10), read=None)
        async with (
            httpx.AsyncClient(trust_env=False, timeout=timeout) as http,
            http.stream("GET", self._url, params={"address.agent": "echo"}) as response,
        ):
            self.status = response.status_code
            reader = EventReader()
            async for data in response.aiter_bytes():
                self.events += reader.feed(data)

    @property
    def changes(self) -> list[tuple[str, str, str]]:
        """Read the next event: its type, and user and protocol of the connection."""
        return [
            (each["event"].rpartition("_")[2], each["connection"]["user"], each["connection"]["protocol"])
            for event in self.events
            if event.type == "watch_connections"
            for each in json.loads(event.data)["changes"]
        ]


async def test_a_watch_lists_present_connections_first_and_then_joins_and_leaves(fleet: Fleet) -> None:
    edge = fleet.processes[1].address
    watching = Watching(edge)
    async with RecordingClient(History(), "demo/ann", edge):
        task = asyncio.create_task(watching.run())
        await wait_until(lambda: watching.changes, "present connections are listed")
        async with RecordingEventClient(History(), "demo/bob", edge):
            await wait_until(lambda: len(watching.changes) == 2, "bob has come")
        await wait_until(lambda: len(watching.changes) == 3, "bob has gone")
    await wait_until(lambda: len(watching.changes) == 4, "ann has gone")
    ann, bob = ("ann", "trunkline.v1.json"), ("bob", "trunkline.v1.events")
    assert watching.changes == [("PRESENT", *ann), ("OPENED", *bob), ("CLOSED", *bob), ("CLOSED", *ann)]
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_an_unknown_tenant_gets_an_http_status(fleet: Fleet) -> None:
    watching = Watching(fleet.processes[1].address, "nobody")
    await watching.run()
    assert watching.status == 404


async def test_a_watch_ends_with_its_edge_and_a_reason(fleet: Fleet) -> None:
    edge = await asyncio.to_thread(fleet.start_edge)
    watching = Watching(edge.address)
    async with RecordingClient(History(), "demo/ann", fleet.processes[1].address):
        task = asyncio.create_task(watching.run())
        await wait_until(lambda: watching.changes, "present connections are listed")
        assert await asyncio.to_thread(edge.terminate) == 0
        await task
        *_, last = watching.events
        assert last.type == "error"
        assert json.loads(last.data)["details"][0]["reason"] == "RESTARTING"
