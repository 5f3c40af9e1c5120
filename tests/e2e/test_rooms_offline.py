"""AnsFlow: messages to an offline user are stored and delivered when the user connects."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

import pytest
from trunkline.v1.history_service_pb2 import ListReceiptsRequest
from websockets.asyncio.client import connect

from tests.e2e.fleet import Fleet, fleet_of
from tests.e2e.grpc_backend import TIMEOUT_S, GrpcBackend, address
from tests.e2e.polling import wait_until
from tests.e2e.recording_client import RecordingClient, topic_name
from tests.e2e.rooms import PLATFORM, member, reset_connection, room, texts_received
from tests.support.patience import patient
from tests.validators.history import History

if TYPE_CHECKING:
    from collections.abc import Iterator

ANN = "demo/user:ann"
GO_ON = {"type": "resume", "delivered": True}


@pytest.fixture
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    with fleet_of(tmp_path_factory.mktemp("offline"), edges=2) as started:
        yield started


async def receive_and_acknowledge(recorder: RecordingClient) -> list[str]:
    """Receive messages and acknowledge the delivery of each; return when all are acknowledged."""
    texts = []
    for frame in list(recorder.inbox):
        if frame["type"] == "message":
            texts.append(frame["parts"][0]["text"])
            receipt = {"position": frame["position"], "address": frame["address"]}
            await recorder.send({"type": "delivered", **receipt})
            recorder.inbox.remove(frame)
    await texts_received(recorder)
    return texts


async def connect_and_resume(recorder: RecordingClient) -> dict[str, Any]:
    """Connect and resume after the delivered messages; return when all missed ones have arrived."""
    connected = await recorder.connect(first=GO_ON)
    assert connected["type"] == "connected"
    await recorder.send({"type": "history", "id": "fence", "conversation": {"kind": "person", "id": "ann"}})
    await recorder.next("history", id="fence")
    return connected


def new_device(fleet: Fleet, edge: int = 1) -> RecordingClient:
    """Create a client of the user on a device without stored positions."""
    return RecordingClient(
        History(), "demo/ann", fleet.processes[edge].address, "person:ann", agent="ansflow"
    )


async def test_missed_messages_of_a_user_are_delivered_once_on_any_device_and_after_a_crash(
    fleet: Fleet,
) -> None:
    with GrpcBackend(fleet.router.address) as backend:
        for number in range(3):
            assert backend.broadcast(ANN, f"offline {number}", f"k{number}").connections == 0
        backend.broadcast(PLATFORM, "to everybody")
        first = new_device(fleet)
        assert (await connect_and_resume(first))["recovered"] is True
        assert sorted(await receive_and_acknowledge(first)) == [
            "offline 0",
            "offline 1",
            "offline 2",
            "to everybody",
        ]
        backend.broadcast(ANN, "seen live")
        await texts_received(first)
        # Sent but not acknowledged: it is delivered again to the next device that asks.
        reset_connection(first)
        backend.broadcast(ANN, "offline 3")
        second = new_device(fleet, 2)
        assert (await connect_and_resume(second))["recovered"] is True
        assert await receive_and_acknowledge(second) == ["seen live", "offline 3"]
        await second.leave()
        await fleet.restart_router()
        backend.broadcast(ANN, "after the crash")
        third = new_device(fleet)
        connected = await connect_and_resume(third)
        starts = {topic_name(entry["address"]): entry["position"]["seq"] for entry in connected["positions"]}
        assert (starts[ANN], starts[PLATFORM]) == (5, 1)
        assert await receive_and_acknowledge(third) == ["after the crash"]
        await third.leave()
        await wait_until(lambda: delivered_positions(backend) == {"ann": 6}, "the last delivery is known")


def delivered_positions(backend: GrpcBackend) -> dict[str, int]:
    """Return the seq up to which messages of the user's topic were delivered, by user."""
    request = ListReceiptsRequest(address=address(ANN))
    receipts = backend.history_service.ListReceipts(request, timeout=TIMEOUT_S).receipts
    return {receipt.user: receipt.delivered.seq for receipt in receipts}


async def test_a_retried_message_to_a_user_is_delivered_once(fleet: Fleet) -> None:
    with GrpcBackend(fleet.router.address) as backend:
        answers = [backend.broadcast(ANN, "pipeline failed", "run-7") for _ in range(3)]
        assert len({answer.message_id for answer in answers}) == 1
        ann = new_device(fleet)
        await connect_and_resume(ann)
        assert await receive_and_acknowledge(ann) == ["pipeline failed"]
        backend.broadcast(ANN, "pipeline failed", "run-7")
        await ann.leave()
        await connect_and_resume(ann)
        assert await receive_and_acknowledge(ann) == []
        await ann.leave()


async def test_messages_sent_while_the_user_connects_are_delivered_once_in_order(fleet: Fleet) -> None:
    with GrpcBackend(fleet.router.address) as backend:
        count = 300

        def publish() -> None:
            for number in range(count):
                backend.broadcast(ANN, str(number))

        publishing = asyncio.create_task(asyncio.to_thread(publish))
        given: list[str] = []
        turns = 0
        while not publishing.done() or len(given) < count:
            ann = new_device(fleet, 1 + turns % 2)
            assert (await connect_and_resume(ann))["recovered"] is True
            given += await receive_and_acknowledge(ann)
            # Live messages since then arrive with the next round.
            await ann.leave()
            turns += 1
            assert turns < 500
        assert given == [str(number) for number in range(count)]
        assert turns > 2


async def test_delivery_can_be_requested_in_the_url_and_requires_a_user(fleet: Fleet) -> None:
    with GrpcBackend(fleet.router.address) as backend:
        backend.broadcast(ANN, "while away")
    place = "tenant=demo&agent=ansflow&platform=web&resume=delivered"
    url = f"ws://{fleet.processes[1].address}/v1/connect?{place}"
    async with asyncio.timeout(patient(10)):
        async with connect(f"{url}&user=ann", compression=None) as ann:
            assert json.loads(await ann.recv())["recovered"] is True
            assert json.loads(await ann.recv())["parts"] == [{"type": "text", "text": "while away"}]
        async with connect(url, compression=None) as nobody:
            assert json.loads(await nobody.recv())["reason"] == "INVALID_ADDRESS"


async def test_a_delivery_receipt_without_a_user_is_rejected(fleet: Fleet) -> None:
    nobody = member(History(), "", fleet.processes[1], "pipeline_1")
    closing = await nobody.connect(first=GO_ON)
    assert (closing["type"], closing["code"], closing["reason"]) == ("closing", 4503, "INVALID_ADDRESS")
    assert "user" in closing["message"]
    async with member(History(), "ann", fleet.processes[1], "pipeline_1") as ann:
        with GrpcBackend(fleet.router.address) as backend:
            backend.broadcast(room("other"), "not for ann")
            position = backend.messages(room("other"))[0].position
        receipt = {"type": "delivered", "position": {"epoch": position.epoch, "seq": position.seq}}
        other = {"tenant": "demo", "agent": "ansflow", "platform": "web"}
        other |= {"conversation": {"kind": "group", "id": "other"}}  # type: ignore[dict-item]
        await ann.send({**receipt, "address": other})
        assert (await ann.next("error"))["code"] == "NOT_SUBSCRIBED"
        both = {
            "address": {"tenant": "demo", "user": "ann"},
            "conversation": {"kind": "group", "id": "pipeline_1"},
        }
        await ann.send({**receipt, **both})
        assert (await ann.next("error"))["code"] == "INVALID_ARGUMENT"
