"""Workers and router killed with SIGKILL: each message is answered exactly once."""

from __future__ import annotations

import asyncio
import json
import random
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING

import pytest

from tests.e2e.fleet import Fleet, fleet_of
from tests.e2e.grpc_backend import GrpcBackend
from tests.e2e.polling import wait_until
from tests.e2e.promise_checks import assert_promises_kept, wait_until_caught_up
from tests.e2e.recording_client import RecordingClient, frame_text
from tests.validators.history import History

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.processes import Process


@pytest.fixture
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    with fleet_of(tmp_path_factory.mktemp("workers"), TRUNKLINE_DELIVERY_LEASE_S="2") as started:
        yield started


def edge_of(fleet: Fleet) -> str:
    return next(process.address for process in fleet.processes if process.name == "edge")


async def delivery(worker: Process) -> dict[str, object]:
    """Return the next delivery that the worker prints."""
    line = await asyncio.to_thread(worker.line, lambda line: line.startswith("{"))
    return json.loads(line)  # type: ignore[no-any-return]


async def test_without_a_worker_messages_wait(fleet: Fleet) -> None:
    history = History()
    async with RecordingClient(history, "demo/ann", edge_of(fleet), "person:ann") as ann:
        for number in range(3):
            await ann.say(f"question {number}")
        await wait_until(lambda: not ann.unacked, "the questions are acked")
        with GrpcBackend(fleet.router.address) as backend:
            assert [(a.agent, a.workers, a.waiting) for a in backend.stats().agents] == [("echo", 0, 3)]
            await asyncio.to_thread(fleet.start_worker, "reply")
            replies = [frame_text(await ann.next("message")) for _ in range(3)]
            assert replies == [f"re: question {number}" for number in range(3)]
            await wait_until(
                lambda: not any(a.waiting + a.held for a in backend.stats().agents), "all is settled"
            )
        assert_promises_kept(fleet, history, [ann])


async def test_deliveries_held_by_a_killed_worker_are_redelivered(fleet: Fleet) -> None:
    history = History()
    async with RecordingClient(history, "demo/ann", edge_of(fleet), "person:ann") as ann:
        holding = await asyncio.to_thread(fleet.start_worker, "hold")
        await ann.say("question")
        assert await delivery(holding) == {"text": "question", "attempt": 1}
        holding.kill()
        working = await asyncio.to_thread(fleet.start_worker, "reply")
        assert await delivery(working) == {"text": "question", "attempt": 2}
        assert frame_text(await ann.next("message")) == "re: question"
        assert_promises_kept(fleet, history, [ann])


async def test_a_delivery_not_settled_within_its_lease_goes_to_another_worker(fleet: Fleet) -> None:
    history = History()
    async with RecordingClient(history, "demo/ann", edge_of(fleet), "person:ann") as ann:
        holding = await asyncio.to_thread(fleet.start_worker, "hold")
        await ann.say("question")
        await delivery(holding)
        await asyncio.to_thread(fleet.start_worker, "reply")
        assert frame_text(await ann.next("message")) == "re: question"
        assert_promises_kept(fleet, history, [ann])


async def test_each_message_is_answered_exactly_once_under_kills(fleet: Fleet) -> None:
    history = History()
    async with AsyncExitStack() as stack:
        clients = [
            await stack.enter_async_context(
                RecordingClient(history, f"demo/{name}", edge_of(fleet), f"person:{name}")
            )
            for name in ("ann", "bob", "cid", "dan")
        ]
        workers = [await asyncio.to_thread(fleet.start_worker, "reply") for _ in range(2)]
        for round_number in range(5):
            for client in clients:
                for number in range(25):
                    await client.say(f"{client.user} asks {round_number}.{number}")
            answered = sum(client.seq() for client in clients) + random.randint(5, 120)
            await wait_until(lambda: sum(c.seq() for c in clients) >= answered, "some answers")  # noqa: B023
            if round_number % 2:
                await fleet.restart_router()
            else:
                workers[round_number // 2 % 2].kill()
                workers[round_number // 2 % 2] = await asyncio.to_thread(fleet.start_worker, "reply")
        questions = 5 * 25
        await wait_until(
            lambda: all(c.seq() == 2 * questions for c in clients), "each question has its answer"
        )
        await wait_until_caught_up(fleet, clients)
        assert_promises_kept(fleet, history, clients)
        asked = {entry.message_id for entry in history.log if entry.role == "user"}
        answers = [entry.reply_to for entry in history.log if entry.role == "agent"]
        assert len(answers) == 4 * questions
        assert set(answers) == asked
