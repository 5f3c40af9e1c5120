"""Two tenants with equal names: one cannot see, reach or count anything of the other."""

from __future__ import annotations

from typing import TYPE_CHECKING

import grpc
import pytest
from trunkline.v1.history_service_pb2 import GetMessageRequest
from trunkline.v1.presence_service_pb2 import CloseConnectionsRequest, ListConnectionsRequest

from tests.e2e.fleet import Fleet, fleet_of
from tests.e2e.grpc_backend import TIMEOUT_S, GrpcBackend, address, reason_of
from tests.e2e.polling import wait_until
from tests.e2e.promise_checks import assert_promises_kept
from tests.e2e.recording_client import RecordingClient
from tests.validators.history import History

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from tests.support.processes import Process

Pair = tuple[RecordingClient, RecordingClient]


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    with fleet_of(tmp_path_factory.mktemp("tenants"), TRUNKLINE_TENANTS="demo,acme") as started:
        yield started


@pytest.fixture
async def pair(fleet: Fleet) -> AsyncIterator[Pair]:
    """Connections of the same user in the same group, one in each tenant."""
    edge: Process = fleet.processes[1]
    history = History()
    async with (
        RecordingClient(history, "demo/ann", edge.address) as ours,
        RecordingClient(history, "acme/ann", edge.address) as theirs,
    ):
        await ours.subscribe("side")
        await theirs.subscribe("side")
        yield ours, theirs


@pytest.fixture
def backend(fleet: Fleet) -> Iterator[GrpcBackend]:
    with GrpcBackend(fleet.router.address) as calling:
        yield calling


async def received_nothing(client: RecordingClient) -> bool:
    """Check that nothing arrives before the response to a request of its own."""
    await client.send({"type": "history", "id": "fence"})
    await client.next("history", id="fence")
    return not [frame for frame in client.inbox if frame["type"] in ("message", "signal", "read")]


async def test_equal_ids_create_two_messages(fleet: Fleet, pair: Pair) -> None:
    ours, theirs = pair
    await ours.say("demo's words", "m1")
    await theirs.say("acme's words", "m1")
    first, second = await ours.next("ack"), await theirs.next("ack")
    assert first["message_id"] != second["message_id"]
    assert first["position"]["epoch"] != second["position"]["epoch"]
    assert await received_nothing(ours)
    assert await received_nothing(theirs)
    assert_promises_kept(fleet, ours.history, [ours, theirs])


async def test_signals_and_reads_stay_within_the_tenant(pair: Pair) -> None:
    ours, theirs = pair
    ident = await ours.say("words")
    ack = await ours.next("ack", id=ident)
    await ours.send({"type": "signal", "name": "typing", "data": {}})
    await ours.send({"type": "read", "position": ack["position"]})
    assert await received_nothing(theirs)


@pytest.mark.parametrize(
    "target", ["", "/echo", "/echo/web", "/echo/web/group:team", "/echo/web/group:side", "/user:ann"]
)
async def test_a_broadcast_reaches_and_counts_one_tenant(
    pair: Pair, backend: GrpcBackend, target: str
) -> None:
    ours, theirs = pair
    for options in ({"ephemeral": True}, {"key": f"same key {target}"}):
        assert backend.broadcast(f"demo{target}", "for demo", **options).connections == 1
        assert (await ours.next("message"))["address"]["tenant"] == "demo"
        assert await received_nothing(theirs)
    other = backend.broadcast(f"acme{target}", "for acme", f"same key {target}")
    message = await theirs.next("message")
    assert message["id"] == other.message_id
    assert await received_nothing(ours)


async def test_a_connection_is_reachable_through_its_own_tenant_only(
    pair: Pair, backend: GrpcBackend
) -> None:
    found = backend.presence.ListConnections(
        ListConnectionsRequest(address=address("demo")), timeout=TIMEOUT_S
    )
    assert [c.address.tenant for c in found.connections] == ["demo"]
    ident = found.connections[0].connection_id
    with pytest.raises(grpc.RpcError) as refusal:
        backend.broadcast(f"acme/connection:{ident}", "for whom?")
    assert reason_of(refusal.value) == "NO_ACTIVE_CONNECTION"
    assert backend.broadcast(f"demo/connection:{ident}", "for you").connections == 1
    assert await received_nothing(pair[1])


async def test_a_message_is_read_and_reset_through_its_own_tenant_only(
    pair: Pair, backend: GrpcBackend
) -> None:
    ours, theirs = pair
    ack = await ours.next("ack", id=await ours.say("for demo only"))
    wanted = GetMessageRequest(tenant="acme", message_id=ack["message_id"])
    with pytest.raises(grpc.RpcError) as refusal:
        backend.history_service.GetMessage(wanted, timeout=TIMEOUT_S)
    assert reason_of(refusal.value) == "MESSAGE_NOT_FOUND"
    backend.reset(theirs.home)
    assert backend.messages(theirs.home) == []
    assert backend.messages(ours.home)[-1].id == ack["message_id"]
    await theirs.send({"type": "history", "id": "h", "after": ack["position"]})
    assert (await theirs.next("error", id="h"))["code"] == "CURSOR_MISMATCH"


async def test_statistics_cover_one_tenant(pair: Pair, backend: GrpcBackend) -> None:
    before = backend.stats("acme")
    await pair[0].next("ack", id=await pair[0].say("counted"))
    assert backend.stats("acme") == before
    assert (before.connections, before.users) == (1, 1)


async def test_topic_counts_and_lists_cover_one_tenant(
    fleet: Fleet, pair: Pair, backend: GrpcBackend
) -> None:
    before = backend.topic_counts("acme")
    async with RecordingClient(History(), "demo/bob", fleet.processes[1].address) as bob:
        await bob.subscribe("side")
        assert backend.count("demo/echo/web/group:side") == (2, 2)
        for place in ("acme", "acme/echo", "acme/echo/web/group:side", "acme/user:ann"):
            assert backend.count(place) == (1, 1)
        assert backend.count("acme/user:bob") == (0, 0)
        assert backend.topic_counts("acme") == before
        assert all(name.startswith("acme") for name in before)
    for call in (backend.count, backend.topic_counts):
        with pytest.raises(grpc.RpcError) as refusal:
            call("nobody")
        assert reason_of(refusal.value) == "UNKNOWN_TENANT"
    with pytest.raises(grpc.RpcError) as refusal:
        backend.topic_counts("demo/connection:x")
    assert reason_of(refusal.value) == "INVALID_ARGUMENT"


async def test_positions_of_another_tenant_recover_nothing(pair: Pair) -> None:
    ours, theirs = pair
    await ours.next("ack", id=await ours.say("words"))
    await theirs.leave()
    theirs.positions = dict(ours.positions)
    theirs.home, home = ours.home, theirs.home
    answer = await theirs.connect(resume=True)
    theirs.home = home
    assert not answer.get("recovered")
    assert {entry["address"]["tenant"] for entry in answer["positions"]} == {"acme"}
    assert await received_nothing(theirs)


async def test_closing_connections_affects_one_tenant(pair: Pair, backend: GrpcBackend) -> None:
    ours, theirs = pair
    request = CloseConnectionsRequest(address=address("demo"), reason="maintenance", reconnect=True)
    assert backend.close_connections(request) == 1
    await wait_until(lambda: ours.closed, "ours is closed")
    assert ours.closed is not None
    assert (ours.closed.code, ours.closed.reason) == (4005, "RECONNECT_REQUESTED")
    assert await received_nothing(theirs)
