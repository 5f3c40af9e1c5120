"""A slow reader is closed or slows down the publisher, and delays no other reader."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING

import pytest
from trunkline.v1.broadcast_service_pb2 import BroadcastManyRequest

from tests.e2e.fleet import Fleet, fleet_of, metric, rss_bytes
from tests.e2e.grpc_backend import GrpcBackend, address
from tests.e2e.polling import wait_until
from tests.e2e.promise_checks import assert_promises_kept, wait_until_caught_up
from tests.e2e.recording_client import RecordingClient
from tests.support.patience import patient
from tests.support.processes import linux
from tests.validators.bounded import bounded
from tests.validators.history import History, MemorySampled

if TYPE_CHECKING:
    from collections.abc import Iterator

DELAY_S = 2.0
MIB = 1 << 20
COUNT = 2000
#: Memory that the flood may add. The router's share covers SQLite's cache of 64 MiB and about five queues.
GROWTH = {"edge": 64 * MIB, "router": 224 * MIB}


@pytest.fixture
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    env = {"TRUNKLINE_LINK_OUTBOX_BYTES": str(MIB)}
    with fleet_of(tmp_path_factory.mktemp("slow"), edges=0, **env) as started:
        yield started


async def test_a_slow_reader_is_closed_without_delaying_the_others(fleet: Fleet) -> None:
    history = History()
    edge = fleet.start_edge(TRUNKLINE_OUTBOX_BYTES=str(256 * 1024))
    async with (
        RecordingClient(history, "demo/ann", edge.address, "group:busy") as ann,
        RecordingClient(history, "demo/bob", edge.address, "group:busy") as bob,
        RecordingClient(history, "demo/sid", edge.address, "group:busy", small_buffers=True) as sid,
    ):
        sid.reading.clear()
        number = 0
        while not metric(edge, "trunkline_edge_slow_consumers_total") and number < 500:
            number += 1
            await ann.say(f"{number} " + "x" * 16_000)
            await wait_until(lambda: bob.seq() == number, "bob receives it")  # noqa: B023
        assert number > 16, "it was not closed at once"
        sid.reading.set()
        await wait_until(lambda: sid.closed, "sid is closed")
        assert sid.closed is not None
        assert (sid.closed.code, sid.closed.reason) == (4000, "SLOW_CONSUMER")
        answer = await sid.connect(resume=True)
        assert answer["type"] == "connected"
        await ann.say("and on")
        await wait_until_caught_up(fleet, [ann, bob, sid])
        assert not list(bounded(history, delay_s=DELAY_S, slow={"demo/sid"}))
        assert_promises_kept(fleet, history, [ann, bob, sid])


@linux
async def test_an_unbounded_publisher_is_slowed_by_slow_readers_and_loses_nothing(fleet: Fleet) -> None:
    history = History()
    total = {"TRUNKLINE_OUTBOX_TOTAL_BYTES": str(MIB), "TRUNKLINE_OUTBOX_BYTES": str(16 * MIB)}
    edge = fleet.start_edge(**total)
    processes = (edge, fleet.router)
    async with AsyncExitStack() as stack:
        readers = [
            await stack.enter_async_context(
                RecordingClient(
                    history, f"demo/user{number}", edge.address, "group:flood", small_buffers=True
                )
            )
            for number in range(3)
        ]
        for reader in readers:
            reader.read_delay_s = 0.001
        before = {process.name: rss_bytes(process) for process in processes}
        publishing = asyncio.create_task(asyncio.to_thread(publish, fleet, readers[0].home, COUNT, 40_000))
        while not publishing.done():
            for process in processes:
                grown = rss_bytes(process) - before[process.name]
                history.events.append(MemorySampled(process=process.name, rss_bytes=grown))
            await asyncio.sleep(0.02)
        assert await publishing == COUNT
        await wait_until(
            lambda: all(reader.seq() == COUNT for reader in readers), "all clients are up to date"
        )
        # The published messages are 80 MB, 240 MB for three readers, and several times that as objects.
        assert not list(bounded(history, rss_bytes=GROWTH))
        assert_promises_kept(fleet, history, readers)


def publish(fleet: Fleet, topic: str, count: int, size: int) -> int:
    """Publish as fast as flow control allows; return the number of accepted messages."""

    def batches() -> Iterator[BroadcastManyRequest]:
        for start in range(0, count, 10):
            batch = BroadcastManyRequest()
            for number in range(start, start + 10):
                item = batch.requests.add(number=number)
                item.request.address.CopyFrom(address(topic))
                item.request.parts.add().text.text = f"{number} " + "x" * size
            yield batch

    with GrpcBackend(fleet.router.address) as backend:
        answers = backend.broadcast_stub.BroadcastMany(batches(), timeout=patient(40))
        return sum(result.HasField("response") for answer in answers for result in answer.results)
