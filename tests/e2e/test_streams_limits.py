"""Streamed replies that are too long, invalid, on a full disk, or read too slowly."""

from __future__ import annotations

import asyncio
import contextlib
import resource
from typing import TYPE_CHECKING

import pytest
from trunkline.v1.message_pb2 import MESSAGE_STATE_COMPLETE, MESSAGE_STATE_FAILED, ToolCallPart
from trunkline_client import Backend, Client, Message, Part, Refused, Worker, address, text_of

from tests.e2e.chaos import client
from tests.e2e.fleet import Fleet, fleet_of
from tests.e2e.polling import WAIT_S, wait_until
from tests.e2e.promise_checks import assert_promises_kept
from tests.e2e.recording_client import RecordingClient
from tests.support.processes import Process, linux
from tests.validators.history import History

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

HOME = "group:team"
MIB = 1 << 20
PIECE = "x" * 10_000


@pytest.fixture
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    with fleet_of(tmp_path_factory.mktemp("limits"), edges=0, TRUNKLINE_REPLY_LEASE_S="3") as started:
        started.start_edge(TRUNKLINE_OUTBOX_BYTES=str(64 * 1024))
        yield started


def edge_of(fleet: Fleet) -> str:
    return next(process.address for process in fleet.processes if process.name == "edge")


@contextlib.asynccontextmanager
async def running_worker(
    fleet: Fleet, answer: Callable[[Worker, Message], Awaitable[None]]
) -> AsyncIterator[None]:
    """Run a worker in this process."""
    attached = asyncio.Event()
    worker = Worker(
        fleet.router.address, tenant="demo", agents=["echo"], on_attached=lambda _: attached.set()
    )
    worker.handler(lambda message: answer(worker, message))
    running = asyncio.create_task(worker.run())
    await asyncio.wait_for(attached.wait(), WAIT_S)
    yield
    running.cancel()
    await asyncio.wait({running})


async def final_reply(asker: Client, question: str) -> Message:
    """Wait until the reply has ended and return it."""
    async with asyncio.timeout(WAIT_S), asker.ask(question) as reply:
        return await reply.wait_until_ended()


async def test_a_reply_over_a_limit_fails_once_and_the_conversation_continues(fleet: Fleet) -> None:
    asked: list[str] = []

    async def answer(worker: Worker, message: Message) -> None:
        question = text_of(message)
        asked.append(question)
        async with worker.reply(message) as out:
            await out.write("well, ")
            if question == "invalid":
                await out.add(Part(tool_call=ToolCallPart(call_id="c" * 1000, name="f")))
            elif question != "short":
                # A delta over the limit; or far more, interrupted on the way.
                for _ in range(int(question) // len(PIECE) + 1):
                    await out.write(PIECE)

    codes = {str(MIB): "MESSAGE_TOO_LARGE", str(3 * MIB): "MESSAGE_TOO_LARGE", "invalid": "AGENT_FAILED"}
    async with running_worker(fleet, answer), client(edge_of(fleet), "ann", HOME) as ann:
        for question, code in codes.items():
            failed = await final_reply(ann, question)
            assert (failed.state, failed.error.code) == (MESSAGE_STATE_FAILED, code), question
            assert text_of(failed).startswith("well, ")
            assert (await final_reply(ann, "short")).state == MESSAGE_STATE_COMPLETE
    assert len(asked) == 2 * len(codes), "nothing is tried again"


@pytest.mark.parametrize("size", [MIB, 3 * MIB])
async def test_a_backend_message_over_the_limit_is_rejected(fleet: Fleet, size: int) -> None:
    topic = address(tenant="demo", agent="echo", platform="web", conversation=HOME)
    async with asyncio.timeout(WAIT_S), Backend(fleet.router.address) as backend:
        out = backend.open_message(topic)

        async def say() -> None:
            async with out:
                for _ in range(size // len(PIECE) + 1):
                    await out.write(PIECE)

        with pytest.raises(Refused, match="MESSAGE_TOO_LARGE"):
            await say()
        assert (await backend.get_message("demo", out.id)).state == MESSAGE_STATE_FAILED
        assert (await backend.get_stats("demo")).open_messages == 0


def limit_files(process: Process, size: int) -> None:
    """Simulate a full disk: no file of the process may grow beyond `size`."""
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))


@linux
async def test_a_reply_on_a_full_disk_is_streamed_and_ends_once_there_is_space(fleet: Fleet) -> None:
    history, full = History(), asyncio.Event()

    async def answer(worker: Worker, message: Message) -> None:
        async with worker.reply(message) as out:
            await out.write("before ")
            await full.wait()
            await out.write("and after")

    async with (
        RecordingClient(history, "demo/ann", edge_of(fleet), HOME) as ann,
        running_worker(fleet, answer),
    ):
        await ann.say("question")
        await wait_until(lambda: "before " in ann.texts.text.values(), "the first words arrive")
        limit_files(fleet.router, 4096)
        full.set()
        await wait_until(lambda: "before and after" in ann.texts.text.values(), "the rest arrives")
        other = await ann.say("something else")
        refusal = await ann.next("error", id=other)
        assert refusal["code"] == "LOG_UNAVAILABLE"
        assert "open" in ann.texts.state.values()
        limit_files(fleet.router, resource.RLIM_INFINITY)
        await ann.resend(other)
        await wait_until(lambda: list(ann.texts.replies().values()) == ["complete"] * 2, "both end")
        assert_promises_kept(fleet, history, [ann])


async def test_a_slow_reader_gets_everything_once_and_a_stalled_one_delays_nobody(fleet: Fleet) -> None:
    history, paused, go_on = History(), asyncio.Event(), asyncio.Event()

    async def answer(worker: Worker, message: Message) -> None:
        async with worker.reply(message) as out:
            for number in range(400):
                if number == 40:
                    paused.set()
                    await go_on.wait()
                await out.write(f"{number} " + "x" * 996)
                await asyncio.sleep(0.002)

    edge = edge_of(fleet)
    async with (
        RecordingClient(history, "demo/ann", edge, HOME) as ann,
        RecordingClient(history, "demo/sid", edge, HOME, small_buffers=True) as sid,
        RecordingClient(history, "demo/nev", edge, HOME, small_buffers=True) as nev,
        running_worker(fleet, answer),
    ):
        sid.reading.clear()
        nev.reading.clear()
        await ann.say("question")
        await asyncio.wait_for(paused.wait(), WAIT_S)
        sid.reading.set()
        go_on.set()
        await wait_until(lambda: "complete" in ann.texts.replies().values(), "ann has it all")
        (ident,) = ann.texts.replies()
        await wait_until(lambda: sid.texts.state.get(ident) == "complete", "sid has received everything")
        assert sid.texts.text[ident] == ann.texts.text[ident]
        openings = [each for each in sid.inbox if each["type"] == "message" and each["state"] == "open"]
        deltas = [each.get("text", "") for each in sid.inbox if each["type"] == "delta"]
        assert len(openings) == 1, "nothing was sent twice"
        assert "".join(deltas) == ann.texts.text[ident]
        nev.reading.set()
        await wait_until(lambda: nev.closed, "nev is closed")
        assert nev.closed is not None
        assert (nev.closed.code, nev.closed.reason) == (4000, "SLOW_CONSUMER")
        await nev.reconnect([edge])
        await wait_until(lambda: nev.texts.state.get(ident) == "complete", "nev has it all")
        assert nev.texts.text[ident] == ann.texts.text[ident]
        assert_promises_kept(fleet, history, [ann, sid, nev])
