"""The programs and tables of docs/workers.md are true, with real processes and with the test router."""

from __future__ import annotations

import asyncio
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
from trunkline.v1.message_pb2 import (
    MESSAGE_STATE_CANCELLED,
    MESSAGE_STATE_COMPLETE,
    MESSAGE_STATE_FAILED,
    MESSAGE_STATE_OPEN,
    Message,
)
from trunkline_client import (
    Backend,
    Client,
    Failed,
    Reject,
    RetryLater,
    Worker,
    address,
    text_of,
)
from trunkline_client.delta_buffer import MAX_KEPT_BYTES, MAX_UNWRITTEN_BYTES, MAX_UNWRITTEN_DELTAS
from trunkline_client.testing import run_worker
from trunkline_router.settings import RouterSettings

from tests.support.patience import patient
from tests.support.processes import ROOT, Process, edge_process, environment, router_process

PAGE = (ROOT / "docs" / "workers.md").read_text()
SNIPPETS = dict(re.findall(r"```python (\w+)\n(.*?)```", PAGE, re.DOTALL))


def run(name: str) -> dict[str, Any]:
    """Runs a snippet; returns its definitions."""
    defined: dict[str, Any] = {"__name__": name}
    exec(compile(SNIPPETS[name], f"workers.md, {name}", "exec"), defined)
    return defined


def rows(heading: str) -> dict[str, list[str]]:
    """The table of a section: its rows' other columns by their first."""
    section = PAGE.partition(f"## {heading}\n")[2].partition("\n## ")[0]
    lines = re.findall(r"^\| (.*) \|$", section, re.MULTILINE)
    table = [[each.strip() for each in line.split(" | ")] for line in lines]
    return {first: rest for first, *rest in table[1:]}


@pytest.fixture(scope="module")
def router(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    with router_process(tmp_path_factory.mktemp("workers")) as process:
        yield process


@pytest.fixture(scope="module")
def edge(router: Process) -> Iterator[Process]:
    with edge_process(router.address) as process:
        yield process


@pytest.fixture(scope="module")
def bot(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the bot and its tests."""
    folder = tmp_path_factory.mktemp("bot")
    for name in ("bot", "test_bot", "test_bot_for_real"):
        (folder / f"{name}.py").write_text(SNIPPETS[name])
    return folder


def person(edge: Process, name: str, agent: str = "poet") -> Client:
    return Client(
        f"ws://{edge.address}", tenant="demo", agent=agent, platform="web", conversation=f"person:{name}"
    )


# Programs.


def test_the_bots_tests_pass(bot: Path) -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-o", "asyncio_mode=auto", "."]
    done = subprocess.run(
        command,
        cwd=bot,
        env=environment({}),
        capture_output=True,
        text=True,
        timeout=patient(60),
        check=False,
    )
    assert "4 passed" in done.stdout, done.stdout + done.stderr


async def test_bots_share_conversations_in_order_drain_and_replace_each_other(
    bot: Path, router: Process, edge: Process
) -> None:
    """One process drains while it replies, and one is killed: nothing is lost, repeated or out of order."""
    async with AsyncExitStack() as stack:

        def start() -> Process:
            env = {"TRUNKLINE_ROUTER": router.address}
            return stack.enter_context(Process([sys.executable, "bot.py"], env, "bot", bot))

        bots = [start(), start()]
        backend = await stack.enter_async_context(Backend(router.address))
        await until_attached(backend, 2)
        clients = [await stack.enter_async_context(person(edge, f"p{number}")) for number in range(4)]
        asked = [[f"{number} of {client}" for number in range(3)] for client in range(4)]
        for client, texts in zip(clients, asked, strict=True):
            for text in texts:
                await client.send(text)
        await until_open(clients[0])
        assert await asyncio.to_thread(bots[0].terminate) == 0
        async with asyncio.timeout(patient(20)):
            for number, texts in enumerate(asked):
                assert await finished(backend, f"p{number}", len(texts)) == [
                    text.replace(" ", "… ") + "… " for text in texts
                ]
            bots.append(start())
            killed, text = await stack.enter_async_context(person(edge, "k")), "a b c d e f g h i j"
            await killed.send(text)
            await until_open(killed)
            await until_attached(backend, 2)
            bots[1].kill()
            assert await finished(backend, "k", 1) == [text.replace(" ", "… ") + "… "]


async def test_a_drain_that_takes_too_long_leaves_the_reply_to_another_process(
    router: Process, edge: Process
) -> None:
    def make_worker() -> Worker:
        worker = Worker(router.address, tenant="demo", agents=["long"])

        @worker.handler
        async def answer(message: Message) -> None:
            async with worker.reply(message) as out:
                if not out.text:
                    await out.write("one ")
                    await asyncio.Event().wait()
                await out.write("two")

        return worker

    old, new = make_worker(), make_worker()
    async with asyncio.timeout(patient(20)), asyncio.TaskGroup() as running:
        retiring = running.create_task(old.run())
        async with person(edge, "ann", "long") as ann, ann.ask("hi") as reply:
            async for delta in reply:
                if text_of(delta.message) == "one ":
                    break
            replacing = running.create_task(new.run())
            assert not await old.drain(0.1)
            await retiring
            ended = await reply.wait_until_ended()
            assert (text_of(ended), ended.state) == ("one two", MESSAGE_STATE_COMPLETE)
        replacing.cancel()


async def until_open(client: Client) -> None:
    """Waits until a reply is being written."""
    async for message in client:
        if message.state == MESSAGE_STATE_OPEN:
            return


async def until_attached(backend: Backend, count: int) -> None:
    deadline = time.monotonic() + patient(20)
    while not any(each.workers == count for each in (await backend.get_stats("demo")).agents):
        assert time.monotonic() < deadline, "the bots do not attach"
        await asyncio.sleep(0.02)


async def finished(backend: Backend, name: str, count: int) -> list[str]:
    """Texts of the replies to a person once all have ended, in order."""
    place = address(tenant="demo", agent="poet", platform="web", conversation=f"person:{name}")
    while True:
        page = await backend.list_messages(place)
        done = [each for each in page.messages if each.reply_to and each.state == MESSAGE_STATE_COMPLETE]
        if len(done) == count:
            return [text_of(each) for each in done]
        await asyncio.sleep(0.05)


def test_the_probe_reports_its_workers(router: Process, tmp_path: Path) -> None:
    program = SNIPPETS["probe"].replace("127.0.0.1:50051", router.address)
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "ready")],
        env=environment({}),
        capture_output=True,
        text=True,
        timeout=patient(30),
        check=False,
    )
    assert done.stderr == ""
    assert "poet 1 workers, 0 waiting\n" in done.stdout
    assert (tmp_path / "ready").exists()


# Snippets with the test router.


@pytest.mark.parametrize(
    ("asked", "replies"),
    [("silence", []), ("twice", ["once", "again"]), ("hello", ["You said: hello"])],
)
async def test_a_handler_returns_its_replies(asked: str, replies: list[str]) -> None:
    async with run_worker(run("returned")["worker"]) as router:
        delivery = await (await router.deliver(asked)).wait()
        assert [each.text for each in delivery.replies] == replies
        assert delivery.outcome == "ack"


async def test_blocking_code_in_threads_leaves_others_alone() -> None:
    worker = run("blocking")["worker"]
    async with run_worker(worker) as router:
        deliveries = [await router.deliver("tea", user=name) for name in ("ann", "bob")]
        replies = [await each.reply() for each in deliveries]
        for each in replies:
            await each.wait_for_text("Found ")
        assert [each.state for each in replies] == [MESSAGE_STATE_OPEN] * 2, "both are being generated"
        assert [(await each.wait()).text for each in replies] == ["Found tea. "] * 2


async def test_a_cancelled_handler_disconnects_from_its_model() -> None:
    defined = run("cancelled")
    async with run_worker(defined["worker"]) as router:
        delivery = await router.deliver("why")
        reply = await (await delivery.reply()).wait_for_text("why? ")
        await delivery.cancel()
        assert (await delivery.wait()).outcome == "ack"
        assert reply.state == MESSAGE_STATE_CANCELLED
    assert defined["log"] == ["connected", "disconnected", "cancelled after 5 characters"]


async def test_an_attempt_continues_the_reply_of_the_one_before() -> None:
    defined = run("continued")
    async with run_worker(defined["worker"]) as router:
        delivery = await (await router.deliver("5")).wait()
        assert (delivery.outcome, delivery.replies[0].state) == ("retry", MESSAGE_STATE_OPEN)
        await delivery.redeliver()
        assert (await delivery.replies[0].wait()).text == "1 2 3 4 5 "
    assert defined["attempts"] == ["", "1 2 "]


@pytest.mark.parametrize(
    ("asked", "outcome", "reason", "text", "error"),
    [
        ("hello", "ack", "", "HELLO", ""),
        ("x" * 1001, "ack", "", "", "Please ask for less at a time."),
        ("slow", "ack", "", "", "That took too long."),
        ("busy", "retry", "the model is busy", None, ""),
        ("\x00", "reject", "binary", "", "generic"),
    ],
)
async def test_a_handler_fails_retries_and_rejects(
    asked: str, outcome: str, reason: str, text: str | None, error: str
) -> None:
    async with run_worker(run("failures")["worker"]) as router:
        delivery = await (await router.deliver(asked)).wait()
        assert (delivery.outcome, delivery.reason) == (outcome, reason)
        if text is None:
            assert not delivery.replies
            assert delivery.retry_after_s == 2.0
        else:
            (reply,) = delivery.replies
            assert reply.text == text
            assert (reply.state == MESSAGE_STATE_FAILED) is bool(error)
            assert error in ("", "generic", reply.error.message)


# Tables.

#: Exceptions that a handler raises, by the first column of the table.
RAISED: dict[str, Exception] = {
    '`Failed("text")`': Failed("text"),
    "any other exception": ValueError("a secret"),
    "`RetryLater(after_s, reason)`": RetryLater(7.0, "why"),
    "`Reject(reason)`": Reject("why"),
}


def test_the_table_of_exceptions_has_these_rows() -> None:
    library = ["`ReplyCancelled`", "`ReplyExpired`", "`AlreadyAnswered`, on opening a reply", "`Fenced`"]
    assert list(rows("Exceptions of a handler")) == [*RAISED, *library]


@pytest.mark.parametrize("place", ["before a reply", "inside the block"])
@pytest.mark.parametrize("row", RAISED)
async def test_the_table_of_exceptions_is_true(row: str, place: str) -> None:
    documented = rows("Exceptions of a handler")[row][place != "before a reply"]
    worker = Worker("203.0.113.1:1", tenant="demo", agents=["a"])

    @worker.handler
    async def answer(message: Message) -> None:
        if place == "before a reply":
            raise RAISED[row]
        async with worker.reply(message) as out:
            await out.write("so far")
            raise RAISED[row]

    async with run_worker(worker) as router:
        delivery = await (await router.deliver("hi")).wait()
        assert delivery.outcome == outcome_of(documented)
        if "after the delay" in documented:
            assert delivery.retry_after_s == 7.0
        assert [each.state for each in delivery.replies] == (
            [MESSAGE_STATE_FAILED]
            if "FAILED" in documented
            else [MESSAGE_STATE_OPEN]
            if "stays open" in documented
            else []
        )
        for each in delivery.replies:
            assert (each.error.message == "text") is ("with that text" in documented)
            assert "secret" not in each.error.message
            assert "why" not in each.error.message


def outcome_of(documented: str) -> str:
    return "retry" if "redelivered" in documented else "reject" if "dead letter" in documented else "ack"


@pytest.mark.parametrize("row", ["`ReplyCancelled`", "`ReplyExpired`"])
async def test_the_ends_of_a_reply_settle_its_delivery_as_the_table_says(row: str) -> None:
    documented = rows("Exceptions of a handler")[row][1]
    async with run_worker(run("cancelled")["worker"]) as router:
        delivery = await router.deliver("why")
        reply = await (await delivery.reply()).wait_for_text("why? ")
        await (delivery.cancel() if row == "`ReplyCancelled`" else delivery.expire())
        assert (await delivery.wait()).outcome == outcome_of(documented)
        assert (reply.state == MESSAGE_STATE_CANCELLED) is ("CANCELLED" in documented)
        if "starts another" in documented:
            await delivery.redeliver()
            assert (await delivery.reply(2)).state == MESSAGE_STATE_OPEN


async def test_a_message_that_is_answered_already_is_acknowledged() -> None:
    worker = Worker("203.0.113.1:1", tenant="demo", agents=["a"])
    calls: list[str] = []

    @worker.handler
    async def answer(message: Message) -> None:
        calls.append(message.id)
        async with worker.reply(message) as out:
            await out.write("done")
        if len(calls) == 1:
            raise ValueError("after the reply")

    async with run_worker(worker) as router:
        delivery = await (await router.deliver("hi")).wait()
        assert delivery.outcome == "retry"
        await delivery.redeliver()
        assert (await delivery.wait()).outcome == "ack"
        assert [each.text for each in delivery.replies] == ["done"]


async def test_a_handler_whose_message_another_worker_has_settles_nothing() -> None:
    defined = run("cancelled")
    async with run_worker(defined["worker"]) as router:
        delivery = await router.deliver("why")
        await (await delivery.reply()).wait_for_text("why? ")
        await router.give_away(delivery)
        await (await router.deliver("what")).reply()
        deadline = time.monotonic() + patient(10)
        while "disconnected" not in defined["log"]:
            assert time.monotonic() < deadline
            await asyncio.sleep(0.02)
        assert not delivery.outcome


def test_the_numbers_are_those_of_the_code() -> None:
    assert (MAX_UNWRITTEN_DELTAS, MAX_UNWRITTEN_BYTES, MAX_KEPT_BYTES) == (256, 64 << 10, 1 << 20)
    fields = RouterSettings.model_fields
    assert (fields["reply_lease_s"].default, fields["delivery_lease_s"].default) == (15, 30)
    assert "(64 by default)" in PAGE
    assert Worker.__init__.__kwdefaults__["capacity"] == 64
