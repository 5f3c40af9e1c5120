"""Tests of handlers without a router, as an author writes them, and the same handlers with a router.

Each scenario runs against both, so that the router in the process of a test behaves like the real one.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Protocol

import pytest
from trunkline.v1.agent_service_pb2 import Delivery
from trunkline.v1.message_pb2 import (
    MESSAGE_STATE_CANCELLED,
    MESSAGE_STATE_COMPLETE,
    MESSAGE_STATE_FAILED,
    ROLE_AGENT,
)
from trunkline_client import (
    Address,
    Backend,
    Client,
    Failed,
    Fenced,
    Message,
    Reject,
    ReplyCancelled,
    RetryLater,
    Worker,
    address,
    text_of,
)
from trunkline_client.testing import FakeDelivery, FakeRouter, run_worker

from tests.support.patience import patient
from tests.support.processes import Process, edge_process, router_process

WAITING = "Let me think"


class Bot:
    """A handler for each scenario, and its observations."""

    def __init__(self) -> None:
        self.calls = 0
        self.waiting = asyncio.Event()
        self.interrupted_by: list[str] = []
        self.interrupted = asyncio.Event()

    async def handle(self, worker: Worker, message: Message) -> str | None:
        self.calls += 1
        try:
            return await getattr(self, text_of(message))(worker, message)  # type: ignore[no-any-return]
        except (asyncio.CancelledError, ReplyCancelled, Fenced) as error:
            self.interrupted_by.append(type(error).__name__)
            self.interrupted.set()
            raise

    async def returns(self, worker: Worker, message: Message) -> str:
        return "done"

    async def streams(self, worker: Worker, message: Message) -> None:
        async with worker.reply(message) as out:
            await out.write_from(["one ", "two"])

    async def fails_inside(self, worker: Worker, message: Message) -> None:
        async with worker.reply(message) as out:
            await out.write("so far")
            raise LookupError("a secret")

    async def fails_before(self, worker: Worker, message: Message) -> str:
        if self.calls == 1:
            raise LookupError("a secret")
        return "done"

    async def retries(self, worker: Worker, message: Message) -> None:
        async with worker.reply(message) as out:
            if self.calls == 1:
                await out.write("one ")
                raise RetryLater(0.1, "busy")
            await out.write("two")

    async def fails_on_purpose(self, worker: Worker, message: Message) -> None:
        raise Failed("No credit left")

    async def fails_inside_on_purpose(self, worker: Worker, message: Message) -> None:
        async with worker.reply(message) as out:
            await out.write("so far")
            raise Failed("No credit left")

    async def rejects(self, worker: Worker, message: Message) -> None:
        raise Reject("spam")

    async def rejects_inside(self, worker: Worker, message: Message) -> None:
        async with worker.reply(message) as out:
            await out.write("so far")
            raise Reject("spam")

    async def waits_inside(self, worker: Worker, message: Message) -> None:
        async with worker.reply(message) as out:
            await out.write(WAITING)
            self.waiting.set()
            await asyncio.Event().wait()

    async def waits_before(self, worker: Worker, message: Message) -> str:
        self.waiting.set()
        await asyncio.Event().wait()
        return "never"


Replies = list[tuple[str, int]]


class Conversation(Protocol):
    """One conversation with the worker."""

    async def ask(self, text: str, cancel_at: str | None) -> None:
        """Sends a message; cancels its reply at this text, or before there is one if the text is empty."""

    async def replies(self) -> Replies:
        """Waits until the message is settled for good; returns its replies."""


class FakeConversation:
    """A conversation by way of the router in this process."""

    def __init__(self, router: FakeRouter, bot: Bot) -> None:
        self._router = router
        self._bot = bot

    async def ask(self, text: str, cancel_at: str | None) -> None:
        self._delivery = await self._router.deliver(text)
        if cancel_at is not None:
            await self._bot.waiting.wait()
            if cancel_at:
                await (await self._delivery.reply()).wait_for_text(cancel_at)
            await self._delivery.cancel()

    async def replies(self) -> Replies:
        while (await self._delivery.wait()).outcome == "retry":
            await self._delivery.redeliver()
        return [(reply.text, reply.state) for reply in self._delivery.replies]


class RealConversation:
    """A conversation by way of an edge and a router."""

    def __init__(self, client: Client, backend: Backend, place: Address, bot: Bot) -> None:
        self._client = client
        self._backend = backend
        self._place = place
        self._bot = bot

    async def ask(self, text: str, cancel_at: str | None) -> None:
        if cancel_at is None:
            await self._client.send(text)
            return
        async with self._client.ask(text) as reply:
            await self._bot.waiting.wait()
            if cancel_at:
                await anext(aiter(reply))
            await reply.cancel()

    async def replies(self) -> Replies:
        deadline = time.monotonic() + patient(20)
        while await self._unsettled():
            assert time.monotonic() < deadline
            await asyncio.sleep(0.02)
        page = await self._backend.list_messages(self._place)
        return [(text_of(each), each.state) for each in page.messages if each.author.role == ROLE_AGENT]

    async def _unsettled(self) -> int:
        stats = await self._backend.get_stats("demo")
        return sum(each.waiting + each.held for each in stats.agents if each.agent == self._place.agent)


@pytest.fixture(scope="module")
def router(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    with router_process(tmp_path_factory.mktemp("testing")) as process:
        yield process


@pytest.fixture(scope="module")
def edge(router: Process) -> Iterator[Process]:
    with edge_process(router.address) as process:
        yield process


@asynccontextmanager
async def real_conversation(
    router: Process, edge: Process, worker: Worker, agent: str, bot: Bot
) -> AsyncIterator[RealConversation]:
    place = {"tenant": "demo", "agent": agent, "platform": "web", "conversation": "person:ann"}
    running = asyncio.create_task(worker.run())
    try:
        async with (
            Backend(router.address) as backend,
            Client(f"ws://{edge.address}", **place, user="ann") as client,  # type: ignore[arg-type]
        ):
            yield RealConversation(client, backend, address(**place), bot)
    finally:
        running.cancel()
        await asyncio.wait({running})


SCENARIOS: dict[str, tuple[str | None, Replies, int, list[str]]] = {
    "returns": (None, [("done", MESSAGE_STATE_COMPLETE)], 1, []),
    "streams": (None, [("one two", MESSAGE_STATE_COMPLETE)], 1, []),
    "fails_inside": (None, [("so far", MESSAGE_STATE_FAILED)], 1, []),
    "fails_before": (None, [("done", MESSAGE_STATE_COMPLETE)], 2, []),
    "retries": (None, [("one two", MESSAGE_STATE_COMPLETE)], 2, []),
    "fails_on_purpose": (None, [("", MESSAGE_STATE_FAILED)], 1, []),
    "fails_inside_on_purpose": (None, [("so far", MESSAGE_STATE_FAILED)], 1, []),
    "rejects": (None, [("", MESSAGE_STATE_FAILED)], 1, []),
    "rejects_inside": (None, [("so far", MESSAGE_STATE_FAILED)], 1, []),
    "waits_inside": (WAITING, [(WAITING, MESSAGE_STATE_CANCELLED)], 1, ["ReplyCancelled"]),
    "waits_before": ("", [], 1, ["CancelledError"]),
}


@pytest.mark.parametrize("scenario", SCENARIOS)
@pytest.mark.parametrize("kind", ["fake", "real"])
async def test_a_handler_meets_the_same_as_with_a_router(
    kind: str, scenario: str, router: Process, edge: Process
) -> None:
    cancel_at, replies, calls, interrupted_by = SCENARIOS[scenario]
    bot = Bot()
    worker = Worker(router.address, tenant="demo", agents=[scenario])
    worker.handler(lambda message: bot.handle(worker, message))
    async with AsyncExitStack() as stack:
        conversation: Conversation
        if kind == "fake":
            fake = await stack.enter_async_context(run_worker(worker))
            conversation = FakeConversation(fake, bot)
        else:
            conversation = await stack.enter_async_context(
                real_conversation(router, edge, worker, scenario, bot)
            )
        await conversation.ask(scenario, cancel_at)
        assert await conversation.replies() == replies
        assert (bot.calls, bot.interrupted_by) == (calls, interrupted_by)


# The fake router alone.


def worker_of(bot: Bot) -> Worker:
    worker = Worker("203.0.113.1:1", tenant="demo", agents=["echo", "other"])
    worker.handler(lambda message: bot.handle(worker, message))
    return worker


async def test_a_delivery_tells_its_outcome_reason_and_delay() -> None:
    bot = Bot()
    async with run_worker(worker_of(bot)) as router:
        rejected = await (await router.deliver("rejects")).wait()
        assert (rejected.outcome, rejected.reason) == ("reject", "spam")
        retried = await (await router.deliver("retries")).wait()
        assert (retried.outcome, retried.reason, retried.attempt) == ("ack", "", 1), "it is the second call"
        failed = await (await router.deliver("fails_inside")).reply()
        await failed.wait()
        assert failed.error.code


async def test_a_message_reaches_the_handler_as_the_test_has_it() -> None:
    seen: list[Message] = []
    worker = Worker("203.0.113.1:1", tenant="demo", agents=["echo", "other"])
    async with run_worker(worker, seen.append) as router:
        delivery = await router.deliver(
            "hi", agent="other", user="bob", conversation="group:team", attributes={"k": "v"}
        )
        await delivery.wait()
    (message,) = seen
    assert message == delivery.message
    assert (message.address.agent, message.address.conversation.id, message.author.user) == (
        "other",
        "team",
        "bob",
    )
    assert (text_of(message), dict(message.attributes)) == ("hi", {"k": "v"})


async def test_a_reply_continues_after_a_break_of_the_stream() -> None:
    gate = asyncio.Event()
    worker = Worker("203.0.113.1:1", tenant="demo", agents=["echo"])

    @worker.handler
    async def answer(message: Message) -> None:
        async with worker.reply(message) as out:
            await out.write("one ")
            await gate.wait()
            await out.write("two")

    async with run_worker(worker) as router:
        delivery = await router.deliver("hi")
        reply = await (await delivery.reply()).wait_for_text("one ")
        await router.break_stream()
        gate.set()
        assert (await reply.wait()).text == "one two"
        assert (await delivery.wait()).attempt == 2


@pytest.mark.parametrize(("text", "raised"), [("waits_inside", "Fenced"), ("waits_before", "CancelledError")])
async def test_a_delivery_given_away_ends_the_handler(text: str, raised: str) -> None:
    bot = Bot()
    async with run_worker(worker_of(bot)) as router:
        delivery = await router.deliver(text)
        await bot.waiting.wait()
        await router.give_away(delivery)
        async with asyncio.timeout(patient(10)):
            await bot.interrupted.wait()
        assert bot.interrupted_by == [raised]
        assert not delivery.outcome


async def test_a_message_without_a_delivery_is_kept_too() -> None:
    worker = Worker("203.0.113.1:1", tenant="demo", agents=["echo"])
    async with run_worker(worker, lambda message: None) as router:
        await (await router.deliver("hi")).wait()
        place = address(tenant="demo", agent="echo", platform="web", conversation="group:team")
        async with worker.open_message(place) as out:
            await out.write("news")
        (message,) = router.messages
        assert (message.text, message.state) == ("news", MESSAGE_STATE_COMPLETE)


async def test_a_worker_that_drains_ends() -> None:
    bot = Bot()
    worker = worker_of(bot)
    async with run_worker(worker) as router:
        await (await router.deliver("returns")).wait()
        assert await worker.drain(patient(5))


async def test_a_wait_for_nothing_fails_and_says_where_the_delivery_stands(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with run_worker(worker_of(Bot())) as router:
        monkeypatch.setattr("trunkline_client.fake_delivery.WAIT_S", 0.01)
        delivery = FakeDelivery(Delivery(message=Message()), router._notify, router._redeliver)
        with pytest.raises(AssertionError, match="unsettled"):
            await delivery.wait()


def test_one_worker_runs_in_one_event_loop_after_another() -> None:
    """A bot's module makes its worker, and each test has a loop of its own."""
    worker = worker_of(Bot())

    async def ask() -> None:
        async with run_worker(worker) as router:
            await (await router.deliver("returns")).wait()
            assert await worker.drain(patient(5))

    for _ in range(2):
        asyncio.run(ask())


async def test_a_worker_without_a_handler_is_an_error() -> None:
    with pytest.raises(RuntimeError, match="needs a handler"):
        async with run_worker(Worker("203.0.113.1:1", tenant="demo", agents=["echo"])):
            pass
