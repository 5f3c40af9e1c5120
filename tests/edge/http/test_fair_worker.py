"""The thread for large bodies: one call at a time, tenants in turn."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable

import pytest
from trunkline.v1.catalogue import Refused
from trunkline_edge.http.fair_worker import MAX_WAITING, MAX_WAITING_OF_TENANT, FairWorker

pytestmark = pytest.mark.io


class Gate:
    """Calls that begin in their order of turn, and end when they are released."""

    def __init__(self) -> None:
        self.begun: list[str] = []
        self._release = threading.Semaphore(0)

    def call(self, name: str) -> Callable[[], str]:
        def run() -> str:
            self.begun.append(name)
            self._release.acquire()
            return name

        return run

    def release(self, count: int) -> None:
        self._release.release(count)


async def begin(worker: FairWorker, gate: Gate, *names: str) -> list[asyncio.Task[str]]:
    """Begin calls of the tenants that the names begin with."""
    tasks = [asyncio.ensure_future(worker.run(name[0], gate.call(name))) for name in names]
    await asyncio.sleep(0)
    return tasks


async def test_tenants_take_turns_whatever_the_number_of_their_calls() -> None:
    worker, gate = FairWorker(), Gate()
    tasks = await begin(worker, gate, "a1", "a2", "a3", "a4", "b1", "b2", "c1")
    gate.release(7)
    assert await asyncio.gather(*tasks) == ["a1", "a2", "a3", "a4", "b1", "b2", "c1"]
    assert gate.begun == ["a1", "a2", "b1", "c1", "a3", "b2", "a4"]


async def test_one_call_runs_at_a_time() -> None:
    worker, running, most = FairWorker(), 0, 0

    def call() -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        running -= 1

    await asyncio.gather(*(worker.run(str(number), call) for number in range(100)))
    assert most == 1


async def test_the_calls_that_wait_are_bounded_of_a_tenant_and_of_all() -> None:
    worker, gate = FairWorker(), Gate()
    tasks = await begin(worker, gate, "a")
    tasks += await begin(worker, gate, *["a"] * MAX_WAITING_OF_TENANT)
    with pytest.raises(Refused) as refused:
        await worker.run("a", gate.call("a"))
    assert refused.value.entry.code == "OVERLOADED"
    names = [chr(ord("A") + number // MAX_WAITING_OF_TENANT) for number in range(MAX_WAITING)]
    tasks += await begin(worker, gate, *names[: MAX_WAITING - MAX_WAITING_OF_TENANT])
    with pytest.raises(Refused):
        await worker.run("z", gate.call("z"))
    gate.release(len(tasks))
    await asyncio.gather(*tasks)
    gate.release(1)
    assert await worker.run("z", gate.call("z")) == "z"


async def test_a_call_that_is_cancelled_while_it_waits_does_not_run() -> None:
    worker, gate = FairWorker(), Gate()
    first, second, third = await begin(worker, gate, "a1", "a2", "b1")
    second.cancel()
    gate.release(2)
    assert await asyncio.gather(first, third) == ["a1", "b1"]
    assert gate.begun == ["a1", "b1"]
    assert second.cancelled()


async def test_the_next_call_waits_for_the_end_of_one_whose_caller_has_gone() -> None:
    worker, gate = FairWorker(), Gate()
    first, second = await begin(worker, gate, "a1", "b1")
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    assert gate.begun == ["a1"]
    gate.release(2)
    assert await second == "b1"


async def test_a_turn_that_comes_together_with_a_cancel_is_passed_on() -> None:
    worker, gate = FairWorker(), Gate()
    first, second, third = await begin(worker, gate, "a1", "b1", "c1")
    first.add_done_callback(lambda _: second.cancel())
    gate.release(3)
    assert (await first, await third) == ("a1", "c1")


async def test_an_error_in_a_call_is_its_callers() -> None:
    worker = FairWorker()
    with pytest.raises(ZeroDivisionError):
        await worker.run("a", lambda: 1 // 0)
    assert await worker.run("a", lambda: 1) == 1
