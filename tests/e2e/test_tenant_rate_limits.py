"""Rate limits of a tenant and its connections: errors, retry delays and counters."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from trunkline.v1 import catalogue
from trunkline.v1.broadcast_service_pb2 import (
    BroadcastManyRequest,
    BroadcastRequest,
    NumberedBroadcast,
)
from trunkline.v1.history_service_pb2 import ListMessagesRequest
from trunkline.v1.message_pb2 import Part, TextPart

from tests.e2e.fleet import Fleet, fleet_of
from tests.e2e.grpc_backend import TIMEOUT_S, GrpcBackend, address, reason_of
from tests.e2e.http_backend import HttpBackend
from tests.e2e.limited_tenants import (
    MANY,
    MIB,
    LimitedTenants,
    answer_to,
    can_send_again,
    client,
    path_of,
    rejected_after_upgrade,
    rejections_of,
    retry_after_s,
)
from tests.e2e.operator_client import OperatorClient
from tests.e2e.polling import wait_until
from tests.e2e.rejections import rejected_stream, rejection_count
from tests.support.patience import patient, under_load

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.processes import Process


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    with fleet_of(tmp_path_factory.mktemp("tenant_rate_limits"), edges=2) as started:
        yield started


@pytest.fixture
def backend(fleet: Fleet) -> Iterator[GrpcBackend]:
    with GrpcBackend(fleet.router.address) as calling:
        yield calling


@pytest.fixture
def limited(fleet: Fleet, operator: OperatorClient) -> LimitedTenants:
    return LimitedTenants(fleet, operator)


async def test_connects_per_second_are_limited_by_each_edge(edge: Process, limited: LimitedTenants) -> None:
    tenant = limited.create(connects_per_s=1)
    before = rejection_count(edge, "TOO_MANY_CONNECTS")
    async with client(edge, tenant):
        closing = await rejected_after_upgrade(edge, tenant)
        assert (closing["code"], closing["reason"]) == (4006, "TOO_MANY_CONNECTS")
        assert 0 < closing["reconnect_after_ms"] <= 1000
        rejection = await rejected_stream(edge, path_of(tenant, what="events"))
        assert (rejection.status, rejection.code) == (429, "TOO_MANY_CONNECTS")
        assert rejection.retry_after_s > 0
    assert rejection_count(edge, "TOO_MANY_CONNECTS") - before == 2

    async def is_in() -> bool:
        recorder = client(edge, tenant)
        answer = await recorder.connect()
        await recorder.leave()
        return answer["type"] == "connected"

    async def eventually() -> bool:
        began = time.monotonic()
        while not await is_in():
            assert time.monotonic() - began < patient(5)
        return True

    assert await eventually()


async def test_frames_of_a_connection_are_rate_limited_and_it_continues(
    edge: Process, limited: LimitedTenants
) -> None:
    tenant = limited.create(connection_messages_per_s=5)
    before = rejection_count(edge, "RATE_LIMITED")
    async with client(edge, tenant) as ann, client(edge, tenant, "bob") as bob:
        for number in range(10):
            await ann.say(f"word {number}", f"m{number}")
        error = await ann.next("error")
        assert (error["code"], error["retryable"]) == ("RATE_LIMITED", True)
        assert error["retry_after_ms"] > 0
        # The other connection has its own bucket.
        await bob.next("ack", id=await bob.say("meanwhile"))
        assert [await ann.next("ack", id=f"m{n}") for n in range(5)]
        # The edge reads from it again.
        assert await can_send_again(ann)
    assert rejection_count(edge, "RATE_LIMITED") > before


async def test_bytes_of_a_connection_are_rate_limited(edge: Process, limited: LimitedTenants) -> None:
    # A bucket of bytes holds at least 12 MiB, so that a message of the maximum size always fits.
    tenant = limited.create(connection_bytes_per_s=MIB)
    async with client(edge, tenant) as ann:
        parts = [{"type": "text", "text": "x" * 250_000}] * 4
        for number in range(14):
            await ann.send({"type": "message", "id": f"m{number}", "parts": parts})
        await wait_until(lambda: [f for f in ann.inbox if f["type"] == "error"], "the limit is reached")
        error = await ann.next("error")
        assert (error["code"], error["retryable"]) == ("RATE_LIMITED", True)
        assert error["retry_after_ms"] > 0
        assert "this connection" in error["message"]


@pytest.mark.parametrize("garbage", ["{", '{"type":"ping","id":5}', '{"type":"nothing"}'])
async def test_undecodable_frames_count_like_any_others(
    edge: Process, limited: LimitedTenants, garbage: str
) -> None:
    tenant = limited.create(connection_messages_per_s=5)
    async with client(edge, tenant) as ann:
        for _ in range(20):
            await ann.send(garbage)
        await ann.next("error", code="RATE_LIMITED")


async def test_clients_and_backends_share_the_rate_limit_of_their_tenant(
    fleet: Fleet, edge: Process, limited: LimitedTenants, backend: GrpcBackend
) -> None:
    tenant = limited.create(messages_per_s=4)
    async with client(edge, tenant) as ann, client(edge, tenant, "bob") as bob:
        for number in range(2):
            await ann.say(f"word {number}")
        for number in range(MANY):
            await bob.say(f"word {number}")
        error = await bob.next("error")
        assert (error["code"], error["retryable"]) == ("RATE_LIMITED", True)
        assert error["retry_after_ms"] > 0
        assert tenant in error["message"]
    request = BroadcastRequest(
        address=address(tenant), parts=[Part(text=TextPart(text="too"))], ephemeral=True
    )
    refused = rejections_of(backend, backend.broadcast_stub.Broadcast, request)
    # Calls worth one second are queued, except for the share reserved for clients.
    assert 0 < len(refused) < MANY
    for error in refused:
        assert reason_of(error) == "RATE_LIMITED"
        assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert 1 <= retry_after_s(error) <= MANY / 4
    body = {"address": {"agent": "echo"}, "parts": [{"text": {"text": "too"}}]}
    with HttpBackend(edge.address, tenant) as by_http, ThreadPoolExecutor(MANY) as callers:
        responses = list(callers.map(lambda _: by_http.http.post("/messages", json=body), range(MANY)))
    [response, *_] = [each for each in responses if each.status_code != 200]
    assert response.status_code == 429
    assert response.json()["details"][0]["reason"] == "RATE_LIMITED"
    assert int(response.headers["retry-after"]) >= 1
    assert backend.stats(tenant).refused["RATE_LIMITED"] >= 2


async def test_sequential_calls_of_backends_are_slowed_down_and_not_rejected(
    limited: LimitedTenants, backend: GrpcBackend
) -> None:
    tenant = limited.create(messages_per_s=20)
    began = time.monotonic()
    for number in range(40):
        backend.broadcast(tenant, str(number))
    assert time.monotonic() - began >= (40 - 20) / 20 * 0.9
    assert not backend.stats(tenant).refused


async def test_calls_of_any_rpc_count_against_the_limit_of_the_tenant(
    edge: Process, limited: LimitedTenants, backend: GrpcBackend
) -> None:
    tenant = limited.create(calls_per_s=4)
    request = ListMessagesRequest(address=address(f"{tenant}/echo/web/group:team"))
    refused = rejections_of(backend, backend.history_service.ListMessages, request)
    assert 0 < len(refused) <= MANY - 4
    assert {reason_of(error) for error in refused} == {"RATE_LIMITED"}
    limit, whose = f"4 calls or {128 * MIB} bytes a second", f"the backends of tenant {tenant}"
    assert {error.details() for error in refused} == {
        catalogue.RATE_LIMITED.sentence(limit=limit, whose=whose)
    }
    # Clients are not affected.
    async with client(edge, tenant) as ann:
        await ann.next("ack", id=await ann.say("meanwhile"))


async def test_the_router_limits_the_sum_of_two_edges(
    fleet: Fleet, limited: LimitedTenants, backend: GrpcBackend
) -> None:
    first, second = fleet.edges
    tenant = limited.create(messages_per_s=6)
    async with client(first, tenant) as ann, client(second, tenant, "bob") as bob:
        errors: list[dict[str, Any]] = []
        deadline = time.monotonic() + TIMEOUT_S
        # If this takes a second, the bucket has refilled: try again.
        while not errors:
            assert time.monotonic() < deadline
            sent = [(each, await each.say(f"word {number}")) for number in range(5) for each in (ann, bob)]
            answers = [await answer_to(each, ident) for each, ident in sent]
            errors = [answer for answer in answers if answer["type"] == "error"]
        assert {error["code"] for error in errors} == {"RATE_LIMITED"}
        assert all(error["retry_after_ms"] > 0 for error in errors)
    assert backend.stats(tenant).refused["RATE_LIMITED"] >= 1


async def test_bytes_of_a_tenant_are_rate_limited(
    edge: Process, limited: LimitedTenants, backend: GrpcBackend
) -> None:
    tenant = limited.create(bytes_per_s=MIB)
    parts = [Part(text=TextPart(text="x" * (MIB // 4)))] * 28
    request = BroadcastRequest(address=address(tenant), parts=parts, ephemeral=True)
    backend.broadcast_stub.Broadcast(request, timeout=TIMEOUT_S)
    with pytest.raises(grpc.RpcError) as rejection:
        backend.broadcast_stub.Broadcast(request, timeout=TIMEOUT_S)
    assert reason_of(rejection.value) == "RATE_LIMITED"
    assert 0 < retry_after_s(rejection.value) < 5


async def test_broadcast_many_is_throttled_and_not_rejected(
    limited: LimitedTenants, backend: GrpcBackend
) -> None:
    tenant = limited.create(messages_per_s=40)
    parts = [Part(text=TextPart(text="paced"))]
    request = BroadcastRequest(address=address(tenant), parts=parts)
    batches = [
        BroadcastManyRequest(
            requests=[NumberedBroadcast(number=n * 10 + k, request=request) for k in range(10)]
        )
        for n in range(10)
    ]
    began = time.monotonic()
    answers = list(backend.broadcast_stub.BroadcastMany(iter(batches), timeout=TIMEOUT_S))
    took_s = time.monotonic() - began
    results = [result for answer in answers for result in answer.results]
    assert sorted(result.number for result in results) == list(range(100))
    assert not [result.error for result in results if result.HasField("error")]
    # The bucket holds one second's worth, and the last batch is not delayed.
    assert took_s >= (100 - 40 - 10) / 40 * 0.9
    assert "RATE_LIMITED" not in backend.stats(tenant).refused


async def test_a_changed_limit_applies_to_open_connections_within_a_second(
    edge: Process, operator: OperatorClient, limited: LimitedTenants
) -> None:
    tenant = limited.create(connection_messages_per_s=1000)
    async with client(edge, tenant) as ann:
        for number in range(20):
            await ann.next("ack", id=await ann.say(f"word {number}"))
        operator.update(tenant, limits={"connection_messages_per_s": 2, "conversations": 1})
        began = time.monotonic()
        while (answer := await answer_to(ann, await ann.say("more")))["type"] == "ack":
            assert time.monotonic() - began < under_load(1)
        assert answer["code"] == "RATE_LIMITED"
        operator.update(tenant, limits={})
        ann.inbox.clear()
        assert await can_send_again(ann)
        answers = [await answer_to(ann, await ann.say(f"again {number}")) for number in range(20)]
        assert {answer["type"] for answer in answers} == {"ack"}
