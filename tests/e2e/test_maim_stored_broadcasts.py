"""Broadcasts with `hold=true`, which maim_message's clients receive when they reconnect."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from trunkline.v1.history_service_pb2 import ListReceiptsRequest

from tests.e2e.grpc_backend import GrpcBackend, address
from tests.e2e.maim_client import MaimClient, broadcast, http, maim_fleet, next_json_line, stock_client
from tests.e2e.polling import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.e2e.fleet import Fleet
    from tests.support.processes import Process


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    with maim_fleet(tmp_path_factory.mktemp("maim")) as started:
        yield started


@pytest.fixture
def backend(fleet: Fleet) -> Iterator[GrpcBackend]:
    with GrpcBackend(fleet.router.address) as calling:
        yield calling


async def test_broadcasts_during_an_edge_failure_arrive_in_order_after_the_reconnect(
    fleet: Fleet, edge: Process
) -> None:
    doomed = fleet.start_edge()
    with stock_client("stay", f"ws://{doomed.address}", "demo", "outage") as client:
        assert (await next_json_line(client))["ok"]
        await broadcast(edge, "demo/outage", {"type": "notice", "number": 0})
        assert (await next_json_line(client))["number"] == 0
        doomed.kill()
        for number in range(1, 21):
            # Until the router notices the dead edge, these count as delivered; they are stored in any case.
            answer = await broadcast(edge, "demo/outage", {"type": "notice", "number": number}, "?hold=true")
            assert answer["success"] or answer["held"]
        fleet.start_edge(TRUNKLINE_EDGE_LISTEN=doomed.address, TRUNKLINE_EDGE_ID=doomed.name)
        numbers = [(await next_json_line(client))["number"] for _ in range(20)]
        assert numbers == list(range(1, 21))
        await broadcast(edge, "demo/outage", {"type": "notice", "number": 21})
        assert (await next_json_line(client))["number"] == 21


async def test_stored_broadcasts_are_delivered_once_to_the_next_client(
    edge: Process, backend: GrpcBackend
) -> None:
    for number in range(3):
        answer = await broadcast(edge, "demo/new/stored", {"type": "notice", "number": number}, "?hold=true")
        assert answer["held"]
        assert answer["error"] == "No active connections for agent new on platform stored"
        assert (await result_of(edge, answer))[0] == 404
    async with MaimClient(edge, "demo/new/stored") as adapter:
        assert [(await adapter.next("notice"))["number"] for _ in range(3)] == [0, 1, 2]
        await wait_until(lambda: receipts(backend, "demo/new/stored"), "the delivery is known")
    assert (await result_of(edge, answer))[0] == 200
    async with MaimClient(edge, "demo/new/stored") as adapter:
        assert await adapter.frames_so_far() == []


async def test_many_large_stored_broadcasts_are_delivered_after_earlier_messages(edge: Process) -> None:
    picture = {"type": "chat", "message_segment": {"type": "image", "data": "x" * (2 << 20)}}
    async with MaimClient(edge, "demo/new/much") as adapter:
        await adapter.send({**picture, "message_id": "m1"})
        assert (await adapter.next("message_result"))["success"]
    for number in range(12):
        notice = {"type": "notice", "number": number, "filling": "y" * (1 << 18)}
        assert (await broadcast(edge, "demo/new/much", notice, "?hold=true"))["held"]
    async with MaimClient(edge, "demo/new/much") as adapter:
        assert adapter.confirmed["recovered"]
        assert [(await adapter.next("notice"))["number"] for _ in range(12)] == list(range(12))


def receipts(backend: GrpcBackend, place: str) -> list[str]:
    """Return the users to whom messages of a place were delivered."""
    request = ListReceiptsRequest(address=address(place))
    return [each.user for each in backend.history_service.ListReceipts(request).receipts]


async def result_of(edge: Process, answer: dict[str, str]) -> tuple[int, object]:
    """Query the result of a broadcast."""
    return await http(edge, "GET", f"/api/v1/message/{answer['message_id']}/result")
