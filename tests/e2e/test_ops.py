"""Health, metrics and reflection; graceful stops."""

from __future__ import annotations

import asyncio
import json
import urllib.error
import urllib.request
from typing import TYPE_CHECKING

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from trunkline.v1.broadcast_service_pb2 import BroadcastManyRequest
from trunkline.v1.catalogue import CONTRACT_MINOR
from trunkline.v1.edge_service_pb2 import LinkHello, LinkRequest
from trunkline.v1.edge_service_pb2_grpc import EdgeServiceStub

from tests.e2e.fleet import Fleet, fleet_of, metric
from tests.e2e.grpc_backend import GrpcBackend, address, reason_of
from tests.e2e.polling import wait_until
from tests.e2e.recording_client import RecordingClient
from tests.support.patience import patient
from tests.validators.explicit import explicit
from tests.validators.history import History

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.support.processes import Process

SERVICES = {"EdgeService", "AgentService", "BroadcastService", "HistoryService", "PresenceService"}


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[Fleet]:
    with fleet_of(tmp_path) as started:
        yield started


def edge_of(fleet: Fleet) -> Process:
    return fleet.processes[1]


def get(edge: Process, path: str) -> tuple[int, str]:
    """Get a page; return status and body."""
    try:
        with urllib.request.urlopen(f"http://{edge.address}{path}", timeout=patient(10)) as response:
            return response.status, response.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


async def test_health_readiness_and_metrics_respond(fleet: Fleet) -> None:
    edge = edge_of(fleet)
    async with RecordingClient(History(), "demo/ann", edge.address) as ann:
        await ann.next("ack", id=await ann.say("counted"))
        status, health = get(edge, "/healthz")
        assert (status, json.loads(health)["status"], json.loads(health)["connections"]) == (200, "ok", 1)
        assert get(edge, "/readyz")[0] == 200
        assert get(edge, "/nothing")[0] == 404
        assert metric(edge, "trunkline_edge_connections") == 1
        assert metric(edge, "trunkline_edge_frames_received_total") == 1
        fleet.router.kill()
        await wait_until(lambda: get(edge, "/readyz")[0] == 503, "the edge is not ready without a router")
        assert get(edge, "/healthz")[0] == 200
        await asyncio.to_thread(fleet.start_router)
        await wait_until(lambda: get(edge, "/readyz")[0] == 200, "the edge is ready again")


def test_the_health_service_and_reflection_respond(fleet: Fleet) -> None:
    with grpc.insecure_channel(fleet.router.address) as channel:
        health = health_pb2_grpc.HealthStub(channel)
        for name in ("", *(f"trunkline.v1.{service}" for service in SERVICES)):
            answer = health.Check(health_pb2.HealthCheckRequest(service=name), timeout=patient(10))
            assert answer.status == health_pb2.HealthCheckResponse.SERVING
        ask = reflection_pb2.ServerReflectionRequest(list_services="")
        stub = reflection_pb2_grpc.ServerReflectionStub(channel)
        (answer,) = stub.ServerReflectionInfo(iter([ask]), timeout=patient(10))
        names = {
            service.name.removeprefix("trunkline.v1.") for service in answer.list_services_response.service
        }
        assert names >= SERVICES


async def test_a_stopping_edge_asks_its_clients_to_reconnect(fleet: Fleet) -> None:
    history = History()
    edge = edge_of(fleet)
    async with (
        RecordingClient(history, "demo/ann", edge.address) as ann,
        RecordingClient(history, "demo/bob", edge.address) as bob,
    ):
        assert await asyncio.to_thread(edge.terminate) == 0
        for client in (ann, bob):
            await wait_until(lambda: client.closed, "the connection is closed")  # noqa: B023
            assert client.closed is not None
            assert (client.closed.code, client.closed.reason) == (1012, "RESTARTING")
            assert client.closing["reconnect_after_ms"] == 500
    assert not list(explicit(history))
    with GrpcBackend(fleet.router.address) as backend:
        await wait_until(lambda: backend.stats().connections == 0, "the router knows that they are gone")


async def test_a_stopping_router_closes_no_client_connection(fleet: Fleet) -> None:
    async with RecordingClient(History(), "demo/ann", edge_of(fleet).address) as ann:
        for number in range(100):
            if len(ann.unacked) < 50:
                await ann.say(f"number {number}")
        assert await asyncio.to_thread(fleet.router.terminate) == 0
        await asyncio.to_thread(fleet.start_router)
        await wait_until(lambda: not ann.unacked, "all is acked by the next router")
        assert not ann.closed


async def test_a_stopping_router_ends_a_publisher_stream_with_a_reason(fleet: Fleet) -> None:
    hang = asyncio.Event()
    loop = asyncio.get_running_loop()

    def batches() -> Iterator[BroadcastManyRequest]:
        batch = BroadcastManyRequest()
        item = batch.requests.add(number=1)
        item.request.address.CopyFrom(address("demo"))
        item.request.parts.add().text.text = "one"
        yield batch
        asyncio.run_coroutine_threadsafe(hang.wait(), loop).result()

    with GrpcBackend(fleet.router.address) as backend:
        stream = backend.broadcast_stub.BroadcastMany(batches(), timeout=patient(30))
        assert (await asyncio.to_thread(next, stream)).results[0].HasField("response")
        stopping = asyncio.create_task(asyncio.to_thread(fleet.router.terminate, 4.0))
        with pytest.raises(grpc.RpcError) as refusal:
            await asyncio.to_thread(next, stream)
        hang.set()
        assert await stopping == 0
        assert refusal.value.code() is grpc.StatusCode.UNAVAILABLE
        assert reason_of(refusal.value) == "ROUTER_UNAVAILABLE"


def test_a_link_with_an_invalid_first_frame_is_rejected(fleet: Fleet) -> None:
    hello = LinkHello(edge_id="e", boot_id="b", contract_minor=CONTRACT_MINOR + 2)
    far = LinkRequest(hello=hello)
    with grpc.insecure_channel(fleet.router.address) as channel:
        for first, code in ((far, "INCOMPATIBLE_VERSION"), (LinkRequest(credit=1), "HELLO_EXPECTED")):
            with pytest.raises(grpc.RpcError) as refusal:
                next(EdgeServiceStub(channel).Link(iter([first]), timeout=patient(10)))
            assert refusal.value.code() is grpc.StatusCode.FAILED_PRECONDITION
            assert reason_of(refusal.value) == code
