"""A worker whose handler fails: its conversation is notified, and nobody but its log learns of the cause."""

from __future__ import annotations

import asyncio
import json
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import websockets
from trunkline.v1.agent_service_pb2 import ListDeadLettersRequest
from trunkline.v1.agent_service_pb2_grpc import AgentServiceStub
from trunkline.v1.catalogue import AGENT_FAILED
from trunkline.v1.message_pb2 import MESSAGE_STATE_COMPLETE, MESSAGE_STATE_FAILED
from trunkline.v1.tenant_pb2 import OPENNESS_LOOPBACK, AgentSettings
from trunkline_client import Client, Message, ReplyStatus, ReplyStatusFrame

from tests.e2e.fleet import Fleet, fleet_of
from tests.e2e.operator_client import OperatorClient
from tests.e2e.polling import wait_until
from tests.support.patience import patient
from tests.support.processes import worker_process

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from tests.support.processes import Process

SCRIPT = Path(__file__).with_name("failing_worker_script.py")
RETRYING, ENDED = ReplyStatus.REPLY_STATUS_RETRYING, ReplyStatus.REPLY_STATUS_ENDED
SETTINGS = {
    "open_to": OPENNESS_LOOPBACK,
    "agent_defaults": AgentSettings(max_attempts=2),
    "agents": {"group-bot": AgentSettings(concurrency=2)},
}


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    with fleet_of(tmp_path_factory.mktemp("failing")) as started:
        with OperatorClient(started.router.address, started.operator_key, started.edges) as operator:
            operator.update("demo", **SETTINGS)
        yield started


@pytest.fixture(scope="module")
def worker(fleet: Fleet) -> Iterator[Process]:
    with worker_process(fleet.router.address, SCRIPT) as process:
        yield process


@pytest.fixture
async def connect(fleet: Fleet) -> AsyncIterator[Any]:
    """A function that connects a client to a conversation."""
    edge = fleet.edges[0]
    async with AsyncExitStack() as stack, asyncio.timeout(patient(30)):

        async def connected(conversation: str, user: str = "ann", agent: str = "echo") -> Client:
            client = Client(
                f"ws://{edge.address}",
                tenant="demo",
                agent=agent,
                platform="web",
                conversation=conversation,
                user=user,
            )
            return await stack.enter_async_context(client)

        yield connected


async def until(client: Client, wanted: Any) -> list[Any]:
    """Return a client's events up to the first one that is wanted."""
    seen: list[Any] = []
    async for event in client.events():
        seen.append(event)
        if wanted(event):
            break
    return seen


def statuses(events: list[Any]) -> list[tuple[int, int]]:
    return [(each.status, each.attempts) for each in events if isinstance(each, ReplyStatusFrame)]


def retrying(fleet: Fleet, agent: str) -> int:
    """Return the number of deliveries of an agent that are tried again."""
    with OperatorClient(fleet.router.address, fleet.operator_key) as operator:
        return sum(stats.retrying for stats in operator.stats().agents if stats.agent == agent)


def has_ended(event: Any) -> bool:
    return isinstance(event, ReplyStatusFrame) and event.status == ENDED


async def test_a_retried_message_is_reported_to_those_who_listen_and_those_who_come(
    worker: Process, fleet: Fleet, connect: Any
) -> None:
    ann = await connect("group:flaky")
    await ann.send("flaky question")
    [status] = await until(ann, lambda event: isinstance(event, ReplyStatusFrame))
    assert (status.status, status.attempts) == (RETRYING, 1)
    url = f"ws://{fleet.edges[0].address}/v1/connect?tenant=demo&agent=echo&platform=web"
    events = await until(ann, has_ended)
    [message] = [event for event in events if isinstance(event, Message)]
    assert message.parts[0].text.text == "re: flaky question"
    assert statuses(events) == [(ENDED, 1)]
    async with websockets.connect(f"{url}&conversation=group:flaky&user=bob") as late:
        assert json.loads(await late.recv())["type"] == "connected"
        await late.send('{"type":"ping","id":"1"}')
        assert json.loads(await late.recv())["type"] == "pong", "it is no longer retried"
    assert "secret of the model" in worker.stderr


async def test_the_last_failure_is_a_reply_that_late_readers_find_in_the_log(
    worker: Process, fleet: Fleet, connect: Any
) -> None:
    ann, bob = await connect("group:poison"), await connect("group:poison", "bob")
    async with ann.ask("poison") as reply:
        await until(bob, lambda event: isinstance(event, ReplyStatusFrame))
        # The first delay is at most a second, so it may be over.
        await wait_until(lambda: reply.is_late or reply.state == MESSAGE_STATE_FAILED, "the reply is late")
        message = await reply.wait_until_ended()
    assert (message.state, message.error.code, message.error.message) == (
        MESSAGE_STATE_FAILED,
        "AGENT_FAILED",
        AGENT_FAILED.text,
    )
    events = await until(bob, has_ended)
    assert statuses(events) == [(ENDED, 2)]
    # The conversation goes on.
    async with ann.ask("hello") as reply:
        assert (await reply.wait_until_ended()).state == MESSAGE_STATE_COMPLETE
    late = await connect("group:poison", "carol")
    page = await late.read_history()
    failed = page.messages[1]
    assert (failed.state, failed.reply_to) == (MESSAGE_STATE_FAILED, page.messages[0].id)
    with OperatorClient(fleet.router.address, fleet.operator_key) as operator:
        stub = AgentServiceStub(operator.channel)
        [letter] = stub.ListDeadLetters(ListDeadLettersRequest(tenant="demo", agent="echo")).dead_letters
    assert "secret of the model" in letter.reason
    assert "secret" not in f"{events}{page}"


@pytest.mark.parametrize(
    ("text", "written", "shown"),
    [
        ("streams", "so far", AGENT_FAILED.text),
        ("explains", "", "No credit left"),
        ("explains-inside", "so far", "No credit left"),
        ("rejects", "", AGENT_FAILED.text),
    ],
)
async def test_readers_get_a_text_that_is_made_for_them(
    text: str, written: str, shown: str, worker: Process, connect: Any
) -> None:
    ann = await connect(f"person:{text}", text)
    async with ann.ask(text) as reply:
        message = await reply.wait_until_ended()
        assert reply.text == written
    assert (message.state, message.error.message) == (MESSAGE_STATE_FAILED, shown)


async def test_the_message_of_a_killed_worker_is_reported_and_answered_once(
    fleet: Fleet, connect: Any
) -> None:
    ann = await connect("person:killed", "killed", "mortal")
    with worker_process(fleet.router.address, SCRIPT, AGENTS="mortal") as first:
        await ann.send("holds question")
        await asyncio.to_thread(first.line, lambda line: "holds question" in line)
        first.kill()
        events = await until(ann, lambda event: isinstance(event, ReplyStatusFrame))
        assert statuses(events) == [(RETRYING, 1)]
        assert not events[-1].HasField("next_attempt_at"), "it is repeated at once"
        assert retrying(fleet, "mortal") == 1
    with worker_process(fleet.router.address, SCRIPT, AGENTS="mortal", HOLDS="no"):
        assert statuses(await until(ann, has_ended)) == [(ENDED, 1)]
        assert retrying(fleet, "mortal") == 0
        page = await ann.read_history()
    assert [message.parts[0].text.text for message in page.messages] == [
        "holds question",
        "re: holds question",
    ]


async def test_members_of_a_group_do_not_wait_for_each_other(worker: Process, connect: Any) -> None:
    ann = await connect("group:busy", "ann", "group-bot")
    bob = await connect("group:busy", "bob", "group-bot")
    await ann.send("holds this")
    await ann.send("and this")
    async with bob.ask("hello") as reply:
        assert (await reply.wait_until_ended()).parts[0].text.text == "re: hello"
    page = await bob.read_history()
    assert [message.parts[0].text.text for message in page.messages] == [
        "holds this",
        "and this",
        "hello",
        "re: hello",
    ]
