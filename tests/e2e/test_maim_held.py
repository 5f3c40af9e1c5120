"""What is kept for clients of maim_message's tenant family comes when they are back: M9, B9."""

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


async def test_m9_what_is_held_while_an_edge_is_dead_comes_in_order_after_the_client_is_back(
    fleet: Fleet, edge: Process
) -> None:
    doomed = fleet.start_edge()
    with stock_client("stay", f"ws://{doomed.address}", "demo", "m9") as client:
        assert (await next_json_line(client))["ok"]
        await broadcast(edge, "demo/m9", {"type": "notice", "number": 0})
        assert (await next_json_line(client))["number"] == 0
        doomed.kill()
        for number in range(1, 21):
            # While the router has not noticed yet they count as told; either way they are kept.
            answer = await broadcast(edge, "demo/m9", {"type": "notice", "number": number}, "?hold=true")
            assert answer["success"] or answer["held"]
        fleet.start_edge(TRUNKLINE_EDGE_LISTEN=doomed.address, TRUNKLINE_EDGE_ID=doomed.name)
        numbers = [(await next_json_line(client))["number"] for _ in range(20)]
        assert numbers == list(range(1, 21))
        await broadcast(edge, "demo/m9", {"type": "notice", "number": 21})
        assert (await next_json_line(client))["number"] == 21


async def test_b9_what_was_to_be_held_is_there_for_who_connects_and_comes_once(
    edge: Process, backend: GrpcBackend
) -> None:
    for number in range(3):
        answer = await broadcast(edge, "demo/new/b9", {"type": "notice", "number": number}, "?hold=true")
        assert answer["held"]
        assert answer["error"] == "No active connections for agent new on platform b9"
        assert (await result_of(edge, answer))[0] == 404
    async with MaimClient(edge, "demo/new/b9") as adapter:
        assert [(await adapter.next("notice"))["number"] for _ in range(3)] == [0, 1, 2]
        await wait_until(lambda: receipts(backend, "demo/new/b9"), "the delivery is known")
    assert (await result_of(edge, answer))[0] == 200
    async with MaimClient(edge, "demo/new/b9") as adapter:
        assert await adapter.by_now() == []


async def test_what_is_held_comes_however_much_it_is_and_whatever_was_said_before(edge: Process) -> None:
    picture = {"type": "chat", "message_segment": {"type": "image", "data": "x" * (2 << 20)}}
    async with MaimClient(edge, "demo/new/much") as adapter:
        await adapter.send({**picture, "message_id": "m1"})
        assert (await adapter.next("message_result"))["success"]
    for number in range(12):
        said = {"type": "notice", "number": number, "filling": "y" * (1 << 18)}
        assert (await broadcast(edge, "demo/new/much", said, "?hold=true"))["held"]
    async with MaimClient(edge, "demo/new/much") as adapter:
        assert adapter.confirmed["recovered"]
        assert [(await adapter.next("notice"))["number"] for _ in range(12)] == list(range(12))


def receipts(backend: GrpcBackend, place: str) -> list[str]:
    """Who has been given anything in a place."""
    request = ListReceiptsRequest(address=address(place))
    return [each.user for each in backend.history_service.ListReceipts(request).receipts]


async def result_of(edge: Process, answer: dict[str, str]) -> tuple[int, object]:
    """What became of a broadcast."""
    return await http(edge, "GET", f"/api/v1/message/{answer['message_id']}/result")
