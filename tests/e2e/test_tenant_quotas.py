"""Quotas of a tenant: connections, frame size, conversations, open messages, origins; errors and counters."""

from __future__ import annotations

from typing import TYPE_CHECKING

import grpc
import pytest
from trunkline.v1.broadcast_service_pb2 import (
    OpenMessageRequest,
)
from trunkline.v1.tenant_pb2 import OPENNESS_LOOPBACK

from tests.e2e.fleet import Fleet, fleet_of, metric
from tests.e2e.grpc_backend import TIMEOUT_S, GrpcBackend, address, reason_of
from tests.e2e.limited_tenants import (
    LimitedTenants,
    client,
    path_of,
    rejected_after_upgrade,
    retry_after_s,
)
from tests.e2e.operator_client import OperatorClient, wait_until_known
from tests.e2e.polling import wait_until
from tests.e2e.rejections import rejected_handshake, rejected_stream, rejection_count

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.processes import Process


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    with fleet_of(tmp_path_factory.mktemp("tenant_quotas"), edges=2) as started:
        yield started


@pytest.fixture
def backend(fleet: Fleet) -> Iterator[GrpcBackend]:
    with GrpcBackend(fleet.router.address) as calling:
        yield calling


@pytest.fixture
def limited(fleet: Fleet, operator: OperatorClient) -> LimitedTenants:
    return LimitedTenants(fleet, operator)


async def test_connections_of_a_tenant_and_of_a_user_are_limited_across_edges(
    fleet: Fleet, limited: LimitedTenants, backend: GrpcBackend
) -> None:
    first, second = fleet.edges
    tenant = limited.create(connections=3, connections_per_user=2)
    before = rejection_count(second, "TOO_MANY_CONNECTIONS")
    async with client(first, tenant) as ann, client(second, tenant):
        closing = await rejected_after_upgrade(second, tenant)
        assert (closing["code"], closing["reason"]) == (4007, "TOO_MANY_CONNECTIONS")
        assert closing["reconnect_after_ms"] > 0
        async with client(first, tenant, "bob"):
            closing = await rejected_after_upgrade(second, tenant, "eve")
            assert (closing["code"], closing["reason"]) == (4007, "TOO_MANY_CONNECTIONS")
            rejection = await rejected_stream(second, path_of(tenant, "eve", "events"))
            assert (rejection.status, rejection.code) == (429, "TOO_MANY_CONNECTIONS")
            assert rejection.retry_after_s > 0
            assert int(rejection.headers["retry-after"]) > 0
            await ann.leave()
            await wait_until(lambda: backend.count(tenant)[0] == 2, "one has left")
            async with client(second, tenant, "eve"):
                assert backend.count(tenant)[0] == 3
    assert backend.stats(tenant).refused["TOO_MANY_CONNECTIONS"] == 3
    assert rejection_count(second, "TOO_MANY_CONNECTIONS") - before == 3


async def test_a_frame_over_the_limit_closes_the_connection(edge: Process, limited: LimitedTenants) -> None:
    tenant = limited.create(frame_bytes=2048)
    async with client(edge, tenant) as ann:
        await ann.next("ack", id=await ann.say("x" * 1000))
        await ann.say("x" * 3000)
        await wait_until(lambda: ann.closed, "the connection is closed")
        assert ann.closed is not None
        assert (ann.closed.code, ann.closed.reason) == (1009, "FRAME_TOO_LARGE")
        assert "2048" in ann.closing["message"]
    assert metric(edge, 'trunkline_edge_connections_closed_total{cause="FRAME_TOO_LARGE"}') == 1


async def test_conversations_of_a_connection_are_limited(
    edge: Process, limited: LimitedTenants, backend: GrpcBackend
) -> None:
    tenant = limited.create(conversations=2)
    async with client(edge, tenant) as ann:
        assert ann.positions
        await ann.subscribe("one")
        await ann.subscribe("two")
        await ann.send({"type": "subscribe", "id": "s", "conversation": {"kind": "group", "id": "three"}})
        error = await ann.next("error", id="s")
        assert (error["code"], error["retryable"]) == ("TOO_MANY_TOPICS", False)
        assert "2" in error["message"]
    assert backend.stats(tenant).refused["TOO_MANY_TOPICS"] == 1


async def test_open_messages_of_a_tenant_are_limited(limited: LimitedTenants, backend: GrpcBackend) -> None:
    tenant = limited.create(open_messages=1)
    request = OpenMessageRequest(address=address(f"{tenant}/echo/web/group:team"), key="one")
    backend.broadcast_stub.OpenMessage(request, timeout=TIMEOUT_S)
    request.key = "two"
    with pytest.raises(grpc.RpcError) as rejection:
        backend.broadcast_stub.OpenMessage(request, timeout=TIMEOUT_S)
    assert reason_of(rejection.value) == "TOO_MANY_OPEN_MESSAGES"
    assert retry_after_s(rejection.value) > 0


async def test_rejected_backend_calls_are_counted(limited: LimitedTenants, backend: GrpcBackend) -> None:
    tenant = limited.create()
    with pytest.raises(grpc.RpcError) as rejection:
        backend.broadcast(tenant, "nobody is there", require_connection=True)
    assert reason_of(rejection.value) == "NO_ACTIVE_CONNECTION"
    assert backend.stats(tenant).refused["NO_ACTIVE_CONNECTION"] == 1


@pytest.mark.parametrize("what", ["connect", "events"])
async def test_web_pages_connect_from_the_origins_of_the_tenant(
    edge: Process, operator: OperatorClient, what: str
) -> None:
    tenant = f"pages-{what}"
    operator.create(tenant, open_to=OPENNESS_LOOPBACK, origins=["https://example.com"])
    wait_until_known(tenant, edge)
    path = path_of(tenant, what=what)
    before = rejection_count(edge, "ORIGIN_FORBIDDEN")
    bad = (
        "https://example.org",
        "http://example.com",
        "https://example.com:8443",
        "null",
        "http://localhost",
    )
    for origin in bad:
        if what == "events":
            rejection = await rejected_stream(edge, path, origin=origin)
        else:
            rejection = await rejected_handshake(edge, path, additional_headers={"Origin": origin})
        assert (rejection.status, rejection.code) == (403, "ORIGIN_FORBIDDEN")
        assert rejection.retry_after_s == 0
    assert rejection_count(edge, "ORIGIN_FORBIDDEN") - before == len(bad)
    for headers in ({}, {"Origin": "https://example.com"}):
        async with client(edge, tenant, additional_headers=headers) as ann:
            assert ann.positions
