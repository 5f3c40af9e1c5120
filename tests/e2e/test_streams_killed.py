"""Worker, edge and router killed with SIGKILL at each step of a streamed reply."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.e2e.fleet import Fleet, fleet_of
from tests.e2e.grpc_backend import GrpcBackend
from tests.e2e.polling import wait_until
from tests.e2e.promise_checks import assert_promises_kept
from tests.e2e.recording_client import RecordingClient
from tests.e2e.stream_worker_script import TEXTS, WHOLE
from tests.e2e.streaming_worker import StreamingWorker
from tests.support.processes import worker_process
from tests.validators.history import Ended, History

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.processes import Process

pytestmark = pytest.mark.long

SCRIPT = Path(__file__).with_name("stream_worker_script.py")
STEPS = ["delivered", "opened", "added", "durable", "ended"]
REPLY_LEASE_S = 2


@pytest.fixture
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    env = {"TRUNKLINE_REPLY_LEASE_S": str(REPLY_LEASE_S), "TRUNKLINE_CHECKPOINT_INTERVAL_S": "0.1"}
    with fleet_of(tmp_path_factory.mktemp("streams"), edges=2, **env) as started:
        yield started


def edges_of(fleet: Fleet) -> list[str]:
    return [process.address for process in fleet.processes if process.name == "edge"]


def start_worker(fleet: Fleet, stop_after: str = "") -> Process:
    return fleet._add(worker_process(fleet.router.address, SCRIPT, STOP_AFTER=stop_after))


async def wait_until_ended(client: RecordingClient, state: str, text: str) -> str:
    """Wait until the only reply of a client has ended in this state; return its id."""
    texts = client.texts
    await wait_until(lambda: state in texts.replies().values(), f"a reply is {state}: {texts.replies()}")
    (ident,) = (ident for ident, its in texts.replies().items() if its == state)
    assert texts.text[ident] == text
    return ident


@pytest.mark.parametrize("step", STEPS)
async def test_a_reply_survives_the_death_of_its_worker(fleet: Fleet, step: str) -> None:
    history = History()
    async with RecordingClient(history, "demo/ann", edges_of(fleet)[0], "person:ann") as ann:
        first = await asyncio.to_thread(start_worker, fleet, step)
        await ann.say("question")
        await asyncio.to_thread(first.line, lambda line: line == step)
        first.kill()
        second = await asyncio.to_thread(start_worker, fleet)
        await asyncio.to_thread(second.line, lambda line: line == "settled")
        await wait_until_ended(ann, "complete", WHOLE)
        assert_promises_kept(fleet, history, [ann])


async def test_a_reply_whose_worker_is_not_replaced_expires_with_its_text(fleet: Fleet) -> None:
    history = History()
    async with RecordingClient(history, "demo/ann", edges_of(fleet)[0], "person:ann") as ann:
        worker = await asyncio.to_thread(start_worker, fleet, "durable")
        await ann.say("question")
        await asyncio.to_thread(worker.line, lambda line: line == "durable")
        worker.kill()
        await wait_until_ended(ann, "expired", "".join(TEXTS[:5]))
        # The next worker does not continue the expired reply; it sends a new one.
        again = await asyncio.to_thread(start_worker, fleet)
        await asyncio.to_thread(again.line, lambda line: line == "settled")
        assert_promises_kept(fleet, history, [ann])


@pytest.mark.parametrize("step", STEPS)
async def test_a_reply_survives_the_death_of_the_router(fleet: Fleet, step: str) -> None:
    history = History()
    async with (
        RecordingClient(history, "demo/ann", edges_of(fleet)[0], "person:ann") as ann,
        StreamingWorker(fleet.router.address) as producer,
    ):
        await ann.say("question")
        delivery = await producer.wait_for_delivery("question")
        if step != "delivered":
            number, opened = await producer.open("r", delivery_id=delivery.delivery_id)
        if step in ("added", "durable", "ended"):
            await producer.add(number, 0, *TEXTS[:5])
            await wait_until(lambda: "".join(TEXTS[:5]) in ann.texts.text.values(), "the first words arrive")
        if step in ("durable", "ended"):
            await producer.wait_durable(number, 5)
        if step == "ended":
            await producer.add(number, 5, *TEXTS[5:])
            assert (await producer.end(number, len(TEXTS))).state == 2
        await fleet.restart_router()
        await wait_until(lambda: producer.broken, "the stream breaks")
        await producer.attach()
        delivery = await producer.wait_for_delivery("question")
        number, opened = await producer.open("r", delivery_id=delivery.delivery_id)
        index = opened.message.next_index
        if step == "ended":
            assert opened.message.state == 2
        else:
            assert opened.message.state == 1
            assert index == (5 if step == "durable" else 0) or step == "added"
            await producer.add(number, index, *TEXTS[index:])
            assert (await producer.end(number, len(TEXTS))).state == 2
        await producer.settle(delivery.delivery_id)
        await wait_until_ended(ann, "complete", WHOLE)
        assert_promises_kept(fleet, history, [ann])


@pytest.mark.parametrize("step", STEPS[1:])
async def test_a_reply_survives_the_death_of_the_reader_edge(fleet: Fleet, step: str) -> None:
    history = History()
    here, there = edges_of(fleet)
    edge = next(process for process in fleet.processes if process.address == here)
    async with (
        RecordingClient(history, "demo/ann", here, "person:ann") as ann,
        RecordingClient(history, "demo/ann", there, "person:ann") as other,
        StreamingWorker(fleet.router.address) as producer,
    ):
        await ann.say("question")
        delivery = await producer.wait_for_delivery("question")
        number, _ = await producer.open("r", delivery_id=delivery.delivery_id)
        sent = {"opened": 0, "added": 5, "durable": 5, "ended": len(TEXTS)}[step]
        await producer.add(number, 0, *TEXTS[:sent])
        await wait_until(lambda: "".join(TEXTS[:sent]) in ann.texts.text.values(), "the first words arrive")
        ann.breaks_expected = True
        await asyncio.to_thread(edge.kill)
        await wait_until(lambda: ann.closed, "ann's connection breaks")
        if step == "ended":
            assert (await producer.end(number, len(TEXTS))).state == 2
        await ann.reconnect([there])
        if step != "ended":
            await producer.add(number, sent, *TEXTS[sent:])
            assert (await producer.end(number, len(TEXTS))).state == 2
        await producer.settle(delivery.delivery_id)
        for each in (ann, other):
            await wait_until_ended(each, "complete", WHOLE)
        assert_promises_kept(fleet, history, [ann, other])


async def test_a_race_of_cancel_and_end_has_one_outcome_for_all(fleet: Fleet) -> None:
    history = History()
    here, there = edges_of(fleet)
    async with (
        RecordingClient(history, "demo/ann", here, "group:team") as ann,
        RecordingClient(history, "demo/bob", there, "group:team") as bob,
        StreamingWorker(fleet.router.address) as producer,
    ):
        await wait_until(lambda: ann.session and bob.session, "both are connected")
        rounds = 40
        for n in range(rounds):
            number, opened = await producer.open(f"r{n}", address=_team())
            await producer.add(number, 0, "half ")
            ident = opened.message.id
            await wait_until(lambda: ann.texts.text.get(ident) == "half ", "ann reads")  # noqa: B023
            cancel = {"type": "cancel", "id": f"x{n}", "message_id": ident}
            outcome, _ = await asyncio.gather(producer.end(number, 1), ann.send(cancel))
            answer = await ann.next("cancelled", id=f"x{n}")
            (reply,) = answer["replies"]
            assert reply == {"message_id": ident, "state": {2: "complete", 3: "cancelled"}[outcome.state]}
            await wait_until(lambda: bob.texts.state.get(ident) == reply["state"], "bob sees it")  # noqa: B023
        assert_promises_kept(fleet, history, [ann, bob])
        received = {(event.message_id, event.state) for event in history.of(Ended)}
        assert len(received) == rounds


async def test_of_two_producers_only_the_latest_can_write(fleet: Fleet) -> None:
    history = History()
    async with (
        RecordingClient(history, "demo/ann", edges_of(fleet)[0], "group:team") as ann,
        StreamingWorker(fleet.router.address, ident="first") as first,
        StreamingWorker(fleet.router.address, ident="second") as second,
    ):
        one, opened = await first.open("r", address=_team())
        await first.add(one, 0, "one ")
        await wait_until(lambda: "one " in ann.texts.text.values(), "ann reads the first")
        two, taken_up = await second.open("r", address=_team())
        assert taken_up.message.id == opened.message.id
        assert taken_up.message.next_index == 1
        await first.add(one, 1, "WRONG ")
        await second.add(two, 1, "two")
        await wait_until(
            lambda: any(p.error.code == "PRODUCER_FENCED" for p in first.progress), "first is received"
        )
        assert (await second.end(two, 2)).state == 2
        await wait_until_ended(ann, "complete", "one two")
        assert_promises_kept(fleet, history, [ann])
        with GrpcBackend(fleet.router.address) as backend:
            assert backend.stats().open_messages == 0


def _team() -> dict[str, object]:
    conversation = {"kind": 2, "id": "team"}
    return {"tenant": "demo", "agent": "echo", "platform": "web", "conversation": conversation}
