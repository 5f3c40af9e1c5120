"""Streams end while idle and while writing."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from trunkline.v1 import catalogue
from trunkline.v1.catalogue import Refused
from trunkline_router.active_call import ActiveCall
from trunkline_router.core.tenants.callers import Caller, CallerKind
from trunkline_router.core.tenants.fair_call_queue import Tarpit
from trunkline_router.rpc import streams
from trunkline_router.runtime import PeerStream

from tests.router.rpc.call_pacing import until


class Peer:
    """A peer that reads a batch when the test allows it."""

    def __init__(self) -> None:
        self.begun: list[Any] = []
        self.read: list[Any] = []
        self.reads = asyncio.Event()

    async def write(self, batch: Any) -> None:
        self.begun.append(batch)
        await self.reads.wait()
        self.read.append(batch)


class Running:
    """A stream with two batches to write, the first of which is being written."""

    def __init__(self) -> None:
        self.peer = Peer()
        self.stream = PeerStream(ActiveCall(Caller(CallerKind.ANYBODY), Tarpit()), lambda: False)
        self._batches = ["one", "two"]
        writing: Any = streams.write_batches(self.peer, self.stream, self._take)  # type: ignore[arg-type]
        self.task = asyncio.create_task(streams.run(self.stream, asyncio.sleep(60), writing))

    def _take(self) -> str | None:
        return self._batches.pop(0) if self._batches else None


async def running() -> Running:
    made = Running()
    made.stream.wake.set()
    await until(lambda: made.peer.begun)
    return made


async def test_a_stream_ended_during_a_write_finishes_the_write() -> None:
    made = await running()
    made.stream.end(catalogue.ROUTER_UNAVAILABLE.refused())
    for _ in range(10):
        await asyncio.sleep(0)
    assert not made.task.done()
    made.peer.reads.set()
    with pytest.raises(Refused) as refused:
        await made.task
    assert refused.value.entry is catalogue.ROUTER_UNAVAILABLE
    assert made.peer.read == made.peer.begun == ["one"]


async def test_the_last_write_waits_a_bounded_time_for_the_peer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(streams, "LAST_WRITE_S", 0.05)
    made = await running()
    made.stream.end(catalogue.ROUTER_UNAVAILABLE.refused())
    with pytest.raises(Refused):
        await made.task
    assert made.peer.read == []


async def test_an_idle_stream_ends_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(streams, "LAST_WRITE_S", 3600)
    made = await running()
    made.peer.reads.set()
    await until(lambda: made.peer.read == ["one", "two"])
    made.stream.end(catalogue.ROUTER_UNAVAILABLE.refused())
    with pytest.raises(Refused):
        await made.task


async def test_cancelling_a_call_cancels_its_reader_and_writer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(streams, "LAST_WRITE_S", 0.05)
    before = asyncio.all_tasks()
    made = await running()
    made.task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await made.task
    assert asyncio.all_tasks() == before
