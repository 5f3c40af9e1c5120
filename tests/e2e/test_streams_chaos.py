"""Streamed replies under random kills: each question has one answer, equal for all clients."""

from __future__ import annotations

import asyncio
import os
from contextlib import AsyncExitStack
from random import Random
from typing import TYPE_CHECKING

import pytest
from trunkline.v1.message_pb2 import MESSAGE_STATE_COMPLETE

from tests.e2e.chaos import (
    FaultInjector,
    ReplyTranscript,
    ask_and_check,
    client,
    stay_connected,
    transcribing_client,
)
from tests.e2e.chaos_worker_script import answer_to
from tests.e2e.fleet import Fleet, fleet_of
from tests.e2e.grpc_backend import GrpcBackend, text_of
from tests.e2e.polling import wait_until
from tests.e2e.promise_checks import assert_promises_kept
from tests.e2e.recording_client import RecordingClient
from tests.validators.history import History

if TYPE_CHECKING:
    from collections.abc import Iterator

    from trunkline.v1.message_pb2 import Message

pytestmark = pytest.mark.long

TALKS = ["ann", "bob", "cat", "dan"]
QUESTIONS = 4
WORDS = 60
KILLS = 8
SEEDS = [int(seed) for seed in os.environ.get("ANYHOW_SEEDS", "1").split(",")]


@pytest.fixture
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    with fleet_of(tmp_path_factory.mktemp("chaos"), edges=2) as started:
        yield started


def questions(user: str) -> list[str]:
    return [f"{WORDS} from {user}, {number}" for number in range(QUESTIONS)]


async def ask_questions(edge: str, user: str) -> None:
    """Ask questions one after another, and the last two concurrently."""
    async with client(edge, user, f"group:{user}") as asker:
        *first, last_but_one, last = questions(user)
        for question in first:
            await ask_and_check(asker, question)
        await asyncio.gather(ask_and_check(asker, last_but_one), ask_and_check(asker, last))


@pytest.mark.parametrize("seed", SEEDS)
async def test_every_question_has_one_complete_answer_under_random_kills(fleet: Fleet, seed: int) -> None:
    history, machines = History(), FaultInjector(fleet, Random(seed))
    edges = machines.addresses
    await machines.start_workers()
    async with AsyncExitStack() as stack, asyncio.TaskGroup() as tasks:
        recorders: list[RecordingClient] = []
        transcripts: dict[str, ReplyTranscript] = {}
        staying: list[asyncio.Task[None]] = []

        async def come(user: str, home: str, edge: str) -> None:
            recorder = RecordingClient(history, f"demo/{user}", edge, home)
            stack.push_async_callback(recorder.leave)
            await recorder.reconnect([edge, *edges])
            recorders.append(recorder)
            staying.append(tasks.create_task(stay_connected(recorder, edges)))

        for number, user in enumerate(TALKS):
            there = edges[1 - number % 2]
            await come(f"{user}-reads", f"group:{user}", there)
            hears = transcribing_client(there, f"{user}-hears", f"group:{user}")
            transcripts[f"group:{user}"] = await stack.enter_async_context(hears)
        talks = [tasks.create_task(ask_questions(edges[n % 2], user)) for n, user in enumerate(TALKS)]
        try:
            for number in range(KILLS * 4):
                await asyncio.sleep(machines.rng.uniform(0, 0.5))
                if number % 3 == 1:
                    recorders[1].abort()
                await machines.kill_one()
                if number == KILLS // 2:
                    await come("late", "group:ann", edges[0])
                if number >= KILLS and all(each.done() for each in talks):
                    break
            await asyncio.wait(talks)
            await assert_consistent(fleet, recorders, transcripts)
        except BaseException:
            print(f"seed {seed}: {machines.faults}")  # noqa: T201
            raise
        for each in staying:
            each.cancel()
        assert_promises_kept(fleet, history, recorders)


async def assert_consistent(
    fleet: Fleet, recorders: list[RecordingClient], transcripts: dict[str, ReplyTranscript]
) -> None:
    """Check the logs against the questions, and all clients against the logs."""
    with GrpcBackend(fleet.router.address) as backend:

        def is_quiet() -> bool:
            stats = backend.stats()
            return not stats.open_messages and not any(each.held or each.waiting for each in stats.agents)

        await wait_until(is_quiet, f"nothing is open, held or waiting: {backend.stats()}")
        assert not any(each.dead_letters for each in backend.stats().agents)
        for user in TALKS:
            home = f"group:{user}"
            answers = answers_of(backend.messages(f"demo/echo/web/{home}"), questions(user))
            expected = dict.fromkeys(answers, "complete")
            for recorder in (each for each in recorders if each.conversation == home):
                await assert_has_answers(recorder, answers, {} if recorder.user == "late" else expected)
            heard = transcripts[home]
            await wait_until(lambda: heard.state == expected, f"{home} is heard: {heard.state}")  # noqa: B023
            assert (heard.text, heard.lost) == (answers, 0)


async def assert_has_answers(
    recorder: RecordingClient, answers: dict[str, str], expected: dict[str, str]
) -> None:
    """Wait until a client has these answers, all of them complete, and check their texts."""
    texts = recorder.texts
    await wait_until(
        lambda: (
            not recorder.closed
            and expected.items() <= texts.replies().items()
            and "open" not in texts.state.values()
        ),
        f"{recorder.name} has all: {texts.state}",
    )
    for ident in texts.replies():
        assert texts.text[ident] == answers[ident], recorder.name


def answers_of(log: list[Message], asked: list[str]) -> dict[str, str]:
    """Return the answers in a log by id; check that each question has exactly one."""
    texts = {message.id: text_of(message) for message in log if not message.reply_to}
    assert sorted(texts.values()) == sorted(asked)
    replies = [message for message in log if message.reply_to]
    assert [message.state for message in replies] == [MESSAGE_STATE_COMPLETE] * len(asked)
    assert {message.reply_to for message in replies} == texts.keys()
    for message in replies:
        assert text_of(message) == answer_to(texts[message.reply_to])
    return {message.id: text_of(message) for message in replies}
