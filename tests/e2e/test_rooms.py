"""AnsFlow: messages to rooms and users reach each recipient once, and closed connections cost nothing."""

from __future__ import annotations

import asyncio
import itertools
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING

import grpc
import pytest

from tests.e2e.fleet import Fleet, fleet_of, metric
from tests.e2e.grpc_backend import GrpcBackend, reason_of
from tests.e2e.polling import wait_until
from tests.e2e.rooms import PLATFORM, leave, member, reset_connection, room, texts_received
from tests.validators.history import History
from tests.validators.promises import assert_promises

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from tests.e2e.recording_client import RecordingClient


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    with fleet_of(tmp_path_factory.mktemp("rooms"), edges=2) as started:
        yield started


@pytest.fixture
async def backend(fleet: Fleet) -> AsyncIterator[GrpcBackend]:
    with GrpcBackend(fleet.router.address) as calling:
        await wait_until(
            lambda: calling.stats().connections == 0, "connections of the previous test are gone"
        )
        yield calling


async def test_a_message_to_a_room_reaches_each_member_once(fleet: Fleet, backend: GrpcBackend) -> None:
    near, far = fleet.processes[1:]
    history = History()
    async with (
        member(history, "ann", near) as ann,
        member(history, "bob", far) as bob,
        member(history, "cid", far, "pipeline_1") as cid,
        member(history, "dan", far, "pipeline_2") as dan,
    ):
        for each in (ann, bob):
            await each.subscribe("pipeline_1")
        assert backend.broadcast(room("pipeline_1"), "to three").connections == 3
        for each in (ann, bob, cid):
            assert await texts_received(each) == ["to three"]
        assert await texts_received(dan) == []
        await leave(bob, "pipeline_1")
        assert backend.broadcast(room("pipeline_1"), "to two").connections == 2
        assert [await texts_received(each) for each in (ann, bob, cid)] == [["to two"], [], ["to two"]]
        await leave(ann, "pipeline_1")
        await cid.leave()
        await wait_until(lambda: backend.count(room("pipeline_1")) == (0, 0), "the room is empty")
        for text in ("to nobody", "nor now"):
            assert backend.broadcast(room("pipeline_1"), text).connections == 0
        assert await texts_received(ann) == []


async def test_a_message_to_a_user_reaches_each_connection_once(fleet: Fleet, backend: GrpcBackend) -> None:
    near, far = fleet.processes[1:]
    history = History()
    async with (
        member(history, "ann", near, "pipeline_1") as one,
        member(history, "ann", far, "pipeline_2") as two,
        member(history, "ann", near) as three,
        member(history, "bob", near, "pipeline_1") as other,
    ):
        await three.subscribe("pipeline_1")
        assert backend.count("demo/user:ann") == (3, 1)
        assert backend.broadcast("demo/user:ann", "for ann").connections == 3
        for each in (one, two, three):
            assert await texts_received(each) == ["for ann"]
        assert await texts_received(other) == []


async def test_a_broadcast_reaches_each_connection_once_while_members_leave_and_join(
    fleet: Fleet, backend: GrpcBackend
) -> None:
    history = History()
    edges = itertools.cycle(fleet.processes[1:])
    count = 200
    async with AsyncExitStack() as stack:

        async def enter(number: int) -> RecordingClient:
            home = ("", "pipeline_1", "pipeline_2")[number % 3]
            return await stack.enter_async_context(member(history, f"u{number}", next(edges), home))

        staying = [await enter(number) for number in range(12)]
        going = [await enter(number) for number in range(12, 24)]

        def publish() -> None:
            for number in range(count):
                backend.broadcast(PLATFORM, f"{number}", f"broadcast-{number}")

        publishing = asyncio.create_task(asyncio.to_thread(publish))
        coming = []
        for number, leaver in enumerate(going, 24):
            reached = staying[0].seq(PLATFORM)
            coming.append(await enter(number))
            if number % 2:
                reset_connection(leaver)
            else:
                leaver.abort()
            await wait_until(lambda: publishing.done() or staying[0].seq(PLATFORM) > reached, "it goes on")  # noqa: B023
        await publishing
        for each in (*staying, *coming):
            texts = await texts_received(each)
            assert texts == [str(number) for number in range(count - len(texts), count)]
            assert len(texts) == count or each in coming
        assert any(leaver.seq(PLATFORM) for leaver in going), "nobody vanished half-way"
        history.open_sessions |= {each.session for each in (*staying, *coming)}
        with GrpcBackend(fleet.router.address, history) as reading:
            reading.read_logs(PLATFORM)
        assert_promises(history)


async def test_a_closed_connection_is_removed_from_every_index(fleet: Fleet, backend: GrpcBackend) -> None:
    near = fleet.processes[1]
    history = History()
    async with member(history, "bob", near, "pipeline_2") as bob:
        ann = member(history, "ann", near, "pipeline_1")
        await ann.connect()
        await ann.subscribe("pipeline_3")
        (known,) = backend.connections("demo/user:ann")
        reset_connection(ann)
        indexes = [
            room("pipeline_1"),
            room("pipeline_3"),
            "demo/user:ann",
            f"demo/connection:{known.connection_id}",
        ]
        await wait_until(lambda: not backend.count(indexes[0])[0], "ann is gone")
        assert [backend.count(index) for index in indexes] == [(0, 0)] * 4
        assert not any(backend.connections(index) for index in indexes)
        assert backend.topic_counts("demo").keys().isdisjoint(indexes)
        before, kept = _counters(fleet), backend.messages(indexes[0])
        for _ in range(2):
            for index in indexes:
                with pytest.raises(grpc.RpcError) as refusal:
                    backend.broadcast(index, "anybody?", require_connection=True)
                assert reason_of(refusal.value) == "NO_ACTIVE_CONNECTION"
        assert backend.messages(indexes[0]) == kept
        assert _counters(fleet) == before, "somebody tried, or wrote about it"
        assert await texts_received(bob) == []


def _counters(fleet: Fleet) -> list[tuple[float, float, int]]:
    return [
        (
            metric(edge, "trunkline_edge_deliveries_total"),
            metric(edge, "trunkline_edge_frames_dropped_total"),
            len(edge.stderr) + len(fleet.router.stderr),
        )
        for edge in fleet.processes[1:]
    ]


async def test_a_room_and_a_user_with_only_dead_connections_are_no_error(
    fleet: Fleet, backend: GrpcBackend
) -> None:
    history = History()
    places = [room("dead"), "demo/user:zoe"]
    dead = [member(history, "zoe", edge, "dead") for edge in (*fleet.processes[1:], fleet.processes[1])]
    for each in dead:
        await each.connect()
    assert [backend.broadcast(place, "alive").connections for place in places] == [3, 3]
    for each in dead:
        reset_connection(each)
    # At once, while the connections die, and when all are known to be dead.
    assert all(backend.broadcast(place, "dying").connections <= 3 for place in places)
    await wait_until(lambda: not backend.topic_counts("demo"), "no topic has connections")
    for text in ("dead", "still dead"):
        assert [backend.broadcast(place, text).connections for place in places] == [0, 0]
    async with member(history, "zoe", fleet.processes[1], "dead") as again:
        assert [backend.broadcast(place, "back").connections for place in places] == [1, 1]
        assert await texts_received(again) == ["back", "back"]
        assert [len(backend.messages(place)) for place in places] == [5, 5]


async def test_a_connection_matched_in_several_ways_receives_a_message_once(
    fleet: Fleet, backend: GrpcBackend
) -> None:
    async with member(History(), "ann", fleet.processes[1], "pipeline_1") as ann:
        for name in ("pipeline_2", "pipeline_3"):
            await ann.subscribe(name)
        places = [
            *(room(f"pipeline_{n}") for n in (1, 2, 3)),
            "demo/user:ann",
            PLATFORM,
            "demo/ansflow",
            "demo",
        ]
        for place in places:
            assert backend.broadcast(place, place).connections == 1
            assert await texts_received(ann) == [place]
