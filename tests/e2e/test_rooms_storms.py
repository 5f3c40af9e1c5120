"""AnsFlow: members that die or do not read while a room is busy."""

from __future__ import annotations

from contextlib import AsyncExitStack
from typing import TYPE_CHECKING

import pytest
from trunkline_client import Backend as Publishing
from trunkline_client import broadcast_request

from tests.e2e.fleet import Fleet, fleet_of, metric
from tests.e2e.grpc_backend import GrpcBackend, address
from tests.e2e.polling import wait_until
from tests.e2e.promise_checks import assert_promises_kept, wait_until_caught_up
from tests.e2e.rooms import closed_by, health, member, reset_connection, room
from tests.validators.history import History

if TYPE_CHECKING:
    from collections.abc import Iterator

STORM = 1000


@pytest.fixture
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    with fleet_of(tmp_path_factory.mktemp("storms"), edges=2) as started:
        yield started


async def test_connections_reset_during_a_storm_leave_every_count_at_zero(fleet: Fleet) -> None:
    edges = fleet.processes[1:]
    history = History()
    async with AsyncExitStack() as stack, Publishing(fleet.router.address) as publishing:
        backend = stack.enter_context(GrpcBackend(fleet.router.address, history))
        everybody = [
            await stack.enter_async_context(member(history, f"u{number}", edges[number % 2], "storm"))
            for number in range(12)
        ]
        staying, dying = everybody[:2], everybody[2:]
        async with publishing.publisher() as publisher:
            for number in range(STORM):
                publisher.publish(broadcast_request(address(room("storm")), f"{number} " + "x" * 500))
                if number % 80 == 79 and dying:
                    await wait_until(lambda: staying[0].seq() > number - 60, "the storm goes on")  # noqa: B023
                    reset_connection(dying.pop())
        await wait_until(
            lambda: all(each.seq() == STORM for each in staying), "the connected client receives everything"
        )
        assert not dying
        await wait_until(lambda: backend.count(room("storm")) == (2, 2), "the dead connections are known")
        history.open_sessions |= {each.session for each in staying}
        assert_promises_kept(fleet, history, staying)
        for each in staying:
            reset_connection(each)
        await wait_until(lambda: backend.count("demo") == (0, 0), "all are gone")
        assert backend.topic_counts("demo") == {}
        stats = backend.stats()
        assert (stats.connections, stats.users, stats.topics) == (0, 0, 0)
        assert (stats.connections_opened, stats.connections_closed) == (12, 12)
        for edge in edges:
            assert metric(edge, "trunkline_edge_connections") == 0
            assert closed_by(edge) == {"CLIENT_LOST": 6}


async def test_a_slow_member_delays_nobody_and_resumes_at_its_position(fleet: Fleet) -> None:
    history = History()
    edge = fleet.start_edge(TRUNKLINE_OUTBOX_BYTES=str(256 * 1024))
    async with (
        member(history, "ann", edge, "busy") as ann,
        member(history, "bob", edge, "busy") as bob,
        member(history, "sid", edge, "busy", small_buffers=True) as sid,
    ):
        sid.reading.clear()
        sent = 0
        with GrpcBackend(fleet.router.address) as backend:
            # The others receive each message before the next is sent, whatever sid does.
            while not metric(edge, "trunkline_edge_slow_consumers_total"):
                sent += 1
                await ann.say(f"{sent} " + "x" * 64_000)
                await wait_until(lambda: bob.seq() == sent, "bob receives it")  # noqa: B023
                assert sent < 500
            await wait_until(lambda: backend.count(room("busy"))[0] <= 3, "it is counted")
            sid.reading.set()
            await wait_until(lambda: sid.closed, "sid is closed")
            assert sid.closed is not None
            assert (sid.closed.code, sid.closed.reason) == (4000, "SLOW_CONSUMER")
            await wait_until(lambda: backend.count(room("busy")) == (2, 2), "sid is no longer counted")
        figures = health(edge)
        assert figures["closed_by"] == closed_by(edge) == {"SLOW_CONSUMER": 1}
        assert figures["dropped"] == metric(edge, "trunkline_edge_frames_dropped_total") >= 1
        assert 0 < figures["success_rate"] < 1
        assert figures["disconnect_rate"] == pytest.approx(1 / 3, abs=1e-6)
        assert (await sid.connect(resume=True))["type"] == "connected"
        await wait_until_caught_up(fleet, [ann, bob, sid])
        assert_promises_kept(fleet, history, [ann, bob, sid])
