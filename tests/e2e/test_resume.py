"""Resume after a reconnect: the client receives exactly what it missed, or `recovered: false`."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING

import pytest
from trunkline.v1.broadcast_service_pb2 import BroadcastManyRequest
from websockets.asyncio.client import connect

from tests.e2e.fleet import Fleet, fleet_of
from tests.e2e.grpc_backend import GrpcBackend, address
from tests.e2e.polling import wait_until
from tests.e2e.promise_checks import assert_promises_kept, wait_until_caught_up
from tests.e2e.recording_client import RecordingClient
from tests.support.patience import patient
from tests.validators.history import History, LogPosition

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    with fleet_of(tmp_path_factory.mktemp("resume"), edges=2) as started:
        yield started


def edges_of(fleet: Fleet) -> list[str]:
    return [process.address for process in fleet.processes if process.name == "edge"]


async def test_missed_messages_are_delivered_exactly_and_then_live_ones(fleet: Fleet) -> None:
    history = History()
    near, far = edges_of(fleet)
    async with (
        RecordingClient(history, "demo/ann", near, "group:resume") as ann,
        RecordingClient(history, "demo/bob", near, "group:resume") as bob,
    ):
        await ann.say("both there")
        await bob.next("message")
        await bob.leave()
        for number in range(30):
            await ann.say(f"missed {number}")
        await wait_until(lambda: not ann.unacked, "all messages are acked")
        bob.edge = far
        assert (await bob.connect(resume=True))["recovered"] is True
        await ann.say("live again")
        await wait_until_caught_up(fleet, [ann, bob])
        assert_promises_kept(fleet, history, [ann, bob])


async def test_a_group_joined_later_is_resumed_by_subscribe(fleet: Fleet) -> None:
    history = History()
    near, far = edges_of(fleet)
    async with (
        RecordingClient(history, "demo/ann", near, "group:later") as ann,
        RecordingClient(history, "demo/bob", far, "person:bob") as bob,
    ):
        await bob.subscribe("later")
        await ann.say("one")
        await bob.next("message")
        _, place = bob.positions[ann.home]
        bob.abort()
        await wait_until(lambda: bob.closed, "bob is gone")
        for number in range(5):
            await ann.say(f"missed {number}")
        await wait_until(lambda: not ann.unacked, "all messages are acked")
        assert (await bob.connect(resume=True))["recovered"] is True
        assert (await bob.subscribe("later", place))["recovered"] is True
        await wait_until(lambda: bob.seq(ann.home) == 6, "bob has it all")
        assert_promises_kept(fleet, history, [ann, bob])


async def test_after_a_reset_nothing_is_recovered(fleet: Fleet) -> None:
    history = History()
    near, far = edges_of(fleet)
    with GrpcBackend(fleet.router.address, history) as backend:
        async with (
            RecordingClient(history, "demo/ann", near, "group:reset") as ann,
            RecordingClient(history, "demo/bob", far, "group:reset") as bob,
        ):
            await ann.say("before the reset")
            await bob.next("message")
            await bob.leave()
            assert backend.reset(ann.home) == 1
            assert backend.reset(ann.home) == 0
            await ann.say("after the reset")
            await wait_until(lambda: not ann.unacked, "it is acked")
            answer = await bob.connect(resume=True)
            assert not answer.get("recovered")
            await ann.say("live")
            await wait_until_caught_up(fleet, [ann])
            await wait_until(lambda: bob.seq() == 2, "bob hears what is new")
            assert_promises_kept(fleet, history, [ann, bob])


async def test_a_client_too_far_behind_is_not_recovered_and_gets_nothing_partial(fleet: Fleet) -> None:
    history = History()
    async with RecordingClient(history, "demo/bob", edges_of(fleet)[1], "group:far") as bob:
        with GrpcBackend(fleet.router.address, history) as backend:
            backend.broadcast(bob.home, "heard")
            await wait_until(lambda: bob.seq() == 1, "bob receives it")
            await bob.leave()
            publish_many(backend, bob.home, 2001)
            answer = await bob.connect(resume=True)
            assert not answer.get("recovered")
            await bob.say("from here on")
            await wait_until_caught_up(fleet, [bob])
            assert bob.seq() == 2003
            assert_promises_kept(fleet, history, [bob])


def publish_many(backend: GrpcBackend, topic: str, count: int) -> None:
    """Broadcast `count` short messages in one stream."""
    batch = BroadcastManyRequest()
    for number in range(count):
        item = batch.requests.add(number=number)
        item.request.address.CopyFrom(address(topic))
        item.request.parts.add().text.text = str(number)
    results = [
        r for a in backend.broadcast_stub.BroadcastMany(iter([batch]), timeout=patient(20)) for r in a.results
    ]
    assert [result.number for result in results] == list(range(count))
    assert not any(result.HasField("error") for result in results)


async def test_a_position_beyond_the_end_is_not_recovered(fleet: Fleet) -> None:
    history = History()
    async with RecordingClient(history, "demo/ann", edges_of(fleet)[0], "group:beyond") as ann:
        await ann.say("one")
        await wait_until(lambda: not ann.unacked, "it is acked")
        await ann.leave()
        spot, place = ann.positions[ann.home]
        ann.positions = {ann.home: (spot, LogPosition(place.epoch, 99))}
        assert not (await ann.connect(resume=True)).get("recovered")


async def test_positions_may_be_sent_in_the_first_frame(fleet: Fleet) -> None:
    history = History()
    near, _ = edges_of(fleet)
    async with RecordingClient(history, "demo/ann", near, "group:frame") as ann:
        await ann.say("one")
        await ann.say("two")
        await wait_until(lambda: not ann.unacked, "both are acked")
        spot, place = ann.positions[ann.home]
        start = {"address": spot, "position": {"epoch": place.epoch, "seq": 0}}
        bob = RecordingClient(history, "demo/bob", near, "group:frame")
        resume = {"type": "resume", "positions": [start]}
        assert (await bob.connect(first=resume))["recovered"] is True
        await wait_until(lambda: bob.seq() == 2, "bob has both")
        await bob.leave()


async def test_frames_sent_with_the_resume_frame_are_not_lost(fleet: Fleet) -> None:
    url = f"ws://{fleet.processes[1].address}/v1/connect?tenant=demo&agent=a&platform=web&resume=frame"
    async with connect(url, compression=None) as ws, asyncio.timeout(patient(10)):
        await ws.send('{"type":"resume","positions":[]}')
        await ws.send('{"type":"ping","id":"p1"}')
        assert json.loads(await ws.recv())["type"] == "connected"
        await ws.send('{"type":"ping","id":"p2"}')
        assert json.loads(await ws.recv())["id"] == "p1"
