"""Behaviour that clients of maim_message's API server rely on, provided by Trunkline."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from trunkline.v1.broadcast_service_pb2 import BroadcastRequest
from trunkline.v1.history_service_pb2 import ListReceiptsRequest, Receipt
from trunkline_client import text_of
from websockets.exceptions import ConnectionClosed

from tests.e2e.fleet import Fleet, fleet_of
from tests.e2e.grpc_backend import GrpcBackend, address
from tests.e2e.maim_api_client import ApiClient, envelope, text_of_envelope, user_envelopes, worker
from tests.e2e.maim_client import MaimClient
from tests.e2e.polling import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.processes import Process


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    with fleet_of(tmp_path_factory.mktemp("maim_api"), TRUNKLINE_TENANTS="demo") as started:
        yield started


@pytest.fixture
def backend(fleet: Fleet) -> Iterator[GrpcBackend]:
    with GrpcBackend(fleet.router.address) as calling:
        yield calling


def delivered(backend: GrpcBackend, place: str) -> int:
    """Return the seq up to which messages of a place were delivered."""
    request = ListReceiptsRequest(address=address(place))
    (receipt,) = backend.history_service.ListReceipts(request).receipts or (Receipt(),)
    return receipt.delivered.seq


async def test_a_message_is_acknowledged_stored_and_answered(
    fleet: Fleet, edge: Process, backend: GrpcBackend
) -> None:
    async with (
        worker(fleet, "demo", "talks") as received,
        ApiClient(edge, "demo:talks", "qq", x_uuid="single_1") as client,
    ):
        ack = await client.say("msg_1")
        assert set(ack) == {"ver", "msg_id", "type", "meta", "payload"}
        assert set(ack["meta"]) == {"uuid", "acked_msg_id", "timestamp"}
        assert (ack["ver"], ack["meta"]["uuid"], ack["payload"]["status"]) == (1, "single_1", "received")
        assert user_envelopes(backend, "demo/talks/qq") == [envelope("msg_1")]
        reply = await client.next()
        assert text_of_envelope(reply) == "demo:talks heard hello"
        assert reply["meta"]["sender_user"] == "server"
        assert reply["payload"]["message_dim"] == {"api_key": "demo:talks", "platform": "qq"}
        assert (text_of(received[0]), received[0].client_id) == ("hello", "msg_1")
        await client.send({"ver": 1, "msg_id": "c1", "type": "custom_poke", "payload": {"target": "42"}})
        assert text_of_envelope(await client.next()) == 'demo:talks heard {"target": "42"}'


@pytest.mark.parametrize("kind", ["sys_std", "sys_heartbeat", "custom_x", "unheard_of", None])
@pytest.mark.parametrize("msg_id", ["plain", 17, "=mark", "line\nbreak", "x" * 500])
async def test_every_msg_id_is_acknowledged_unchanged_even_if_repeated(
    edge: Process, kind: str | None, msg_id: Any
) -> None:
    async with ApiClient(edge, "demo:ids", "qq") as client:
        for _ in range(2):
            await client.say(msg_id, type=kind, payload=[kind])


@pytest.mark.parametrize(
    "payload",
    ["no JSON", "[]", "17", '{"type":"sys_std"}', '{"raw":1}'],
)
async def test_an_undecodable_frame_is_ignored_and_the_connection_survives(
    edge: Process, payload: str | bytes
) -> None:
    async with ApiClient(edge, "demo:garbage", "qq") as client:
        await client.ws.send(payload, text=True)
        await client.say("after")


async def test_a_binary_message_closes_with_1000(edge: Process) -> None:
    async with ApiClient(edge, "demo:binary", "qq") as client:
        await client.ws.send(b"{}")
        with pytest.raises(ConnectionClosed):
            await client.receive()
        assert client.ws.close_code == 1000


async def test_a_msg_id_creates_one_message_on_any_connection_with_any_content(
    fleet: Fleet, edge: Process, backend: GrpcBackend
) -> None:
    async with worker(fleet, "demo", "once") as received:
        for text in ("hello", "hello", "other words"):
            async with ApiClient(edge, "demo:once", "qq") as client:
                await client.say("msg_1", text)
                await client.say("msg_1", text)
        async with ApiClient(edge, "demo:once", "qq") as client:
            await client.say("msg_2")
            # Messages arrive in order, so all earlier ones have arrived.
            await wait_until(
                lambda: received and received[-1].client_id == "msg_2", "the last message arrives"
            )
    assert [message.client_id for message in received] == ["msg_1", "msg_2"]
    assert user_envelopes(backend, "demo/once/qq") == [envelope("msg_1"), envelope("msg_2")]


async def test_an_unacknowledged_message_is_resent_after_a_restart_and_stored_once(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    with fleet_of(tmp_path_factory.mktemp("restart"), edges=1) as fleet:
        edge = fleet.processes[1]
        async with ApiClient(edge, "demo:echo", "qq") as lost:
            await lost.say("msg_0")
            fleet.router.kill()
            await lost.send(envelope("msg_1"))
            await lost.send({"msg_id": "fence", "type": "sys_fence"})
            # The edge has read the message but has not acknowledged it.
            assert (await lost.receive())["meta"]["acked_msg_id"] == "fence"
            await fleet.restart_router()
            assert (await lost.receive())["meta"]["acked_msg_id"] == "msg_1"
        async with ApiClient(edge, "demo:echo", "qq") as client:
            await client.say("msg_1")
        with GrpcBackend(fleet.router.address) as backend:
            assert [each["msg_id"] for each in user_envelopes(backend, "demo/echo/qq")] == ["msg_0", "msg_1"]


async def test_two_connections_with_one_uuid_are_independent(
    fleet: Fleet, edge: Process, backend: GrpcBackend
) -> None:
    async with worker(fleet, "demo", "twins"), ApiClient(edge, "demo:twins", "qq", x_uuid="same") as second:
        async with ApiClient(edge, "demo:twins", "qq", x_uuid="same") as first:
            await first.say("msg_1")
            for client in (first, second):
                assert text_of_envelope(await client.next()) == "demo:twins heard hello"
            await wait_until(lambda: len(backend.connections("demo/twins")) == 2, "both are known")
        await wait_until(lambda: len(backend.connections("demo/twins")) == 1, "one has gone")
        await second.say("msg_2", "again")
        assert text_of_envelope(await second.next()) == "demo:twins heard again"


async def test_missed_messages_are_delivered_after_a_reconnect(
    fleet: Fleet, edge: Process, backend: GrpcBackend
) -> None:
    async with worker(fleet, "demo", "away") as received:
        async with ApiClient(edge, "demo:away", "qq") as client:
            await client.say("msg_1")
            assert text_of_envelope(await client.next()) == "demo:away heard hello"
            place = "demo/away/qq/group:qq"
            await wait_until(lambda: delivered(backend, place) == 2, "it is known what was delivered")
        await wait_until(lambda: not backend.connections("demo/away"), "no connection is left")
        backend.broadcast("demo/away/qq", "to the platform")
        backend.broadcast(place, "to the conversation")
        async with ApiClient(edge, "demo:away", "qq") as client:
            heard = {text_of_envelope(await client.next()), text_of_envelope(await client.next())}
            assert heard == {"to the platform", "to the conversation"}
            assert await client.texts_so_far("msg_1") == []
    assert len(received) == 1


async def test_a_backend_may_send_a_complete_or_a_custom_envelope(
    edge: Process, backend: GrpcBackend
) -> None:
    request = BroadcastRequest(address=address("demo/whole/qq"))
    custom = request.parts.add().custom
    async with ApiClient(edge, "demo:whole", "qq") as client:
        custom.name, custom.json = (
            "maim.api",
            '{"ver":2,"type":"sys_other","payload":{"exact": 1.0},"more":[]}',
        )
        backend.broadcast_stub.Broadcast(request)
        frame = await client.next("sys_other")
        assert frame.pop("msg_id")
        assert frame == {"ver": 2, "type": "sys_other", "payload": {"exact": 1.0}, "more": []}
        custom.name, custom.json = "custom_poke", '{"target": "42"}'
        backend.broadcast_stub.Broadcast(request)
        assert (await client.next("custom_poke"))["payload"] == {"target": "42"}


async def test_clients_of_both_protocols_receive_the_same_messages(fleet: Fleet, edge: Process) -> None:
    async with (
        worker(fleet, "demo", "both"),
        ApiClient(edge, "demo:both", "qq") as client,
        MaimClient(edge, "demo/both/qq") as adapter,
    ):
        await client.say("msg_1")
        assert text_of_envelope(await client.next()) == "demo:both heard hello"
        assert (await adapter.next("chat_response"))["data"]["response"] == "demo:both heard hello"
        await adapter.say("m2", "hi")
        assert text_of_envelope(await client.next()) == "demo:both heard hi"


async def test_content_over_the_size_limit_is_left_out_and_the_client_stays_connected(
    edge: Process, backend: GrpcBackend
) -> None:
    request = BroadcastRequest(address=address("demo/large/qq"))
    request.parts.add().image.inline = bytes(1 << 20)
    # Like old clients, this one accepts 1 MiB and closes with 1009 on more.
    async with ApiClient(edge, "demo:large", "qq") as client:
        sent = backend.broadcast_stub.Broadcast(request)
        assert f"{sent.message_id}@demo was left out" in text_of_envelope(await client.next())
        backend.broadcast("demo/large/qq", "x" * 262_144)
        assert len(text_of_envelope(await client.next())) == 262_144
        await client.say("msg_1")


async def test_large_messages_of_clients_are_accepted(fleet: Fleet, edge: Process) -> None:
    large = envelope("msg_1")
    large["payload"]["message_segment"] = {"type": "image", "data": "A" * (10 << 20)}
    async with worker(fleet, "demo", "takes") as received, ApiClient(edge, "demo:takes", "qq") as client:
        await client.say("msg_1", payload=large["payload"])
        await wait_until(lambda: received, "the worker has it")
    assert json.loads(received[0].parts[-1].custom.json) == large
