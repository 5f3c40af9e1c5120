"""Workers that share an agent: order, failures, retries, dead letters, draining, early cancels."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from trunkline.v1.agent_service_pb2 import (
    ListDeadLettersRequest,
    ReplayDeadLettersRequest,
    Reply,
    RetryLater,
)
from trunkline.v1.agent_service_pb2_grpc import AgentServiceStub

from tests.e2e.fleet import Fleet, fleet_of
from tests.e2e.grpc_backend import GrpcBackend, text_of
from tests.e2e.polling import wait_until
from tests.e2e.promise_checks import assert_promises_kept
from tests.e2e.recording_client import RecordingClient, frame_text
from tests.e2e.streaming_worker import StreamingWorker
from tests.validators.history import History

if TYPE_CHECKING:
    from collections.abc import Iterator

MAX_ATTEMPTS = 3
DEAD = ListDeadLettersRequest(tenant="demo", agent="echo")


@pytest.fixture
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    with fleet_of(tmp_path_factory.mktemp("pools"), TRUNKLINE_MAX_ATTEMPTS=str(MAX_ATTEMPTS)) as started:
        yield started


def edge_of(fleet: Fleet) -> str:
    return next(process.address for process in fleet.processes if process.name == "edge")


def answer(text: str) -> Reply:
    reply = Reply()
    reply.parts.add().text.text = text
    return reply


async def test_workers_share_conversations_and_each_stays_in_order(fleet: Fleet) -> None:
    history = History()
    async with (
        RecordingClient(history, "demo/ann", edge_of(fleet), "person:ann") as ann,
        RecordingClient(history, "demo/bob", edge_of(fleet), "person:bob") as bob,
        StreamingWorker(fleet.router.address, ident="one") as one,
        StreamingWorker(fleet.router.address, ident="two") as two,
    ):
        for client in (ann, bob):
            for n in range(3):
                await client.say(f"{client.user} {n}")
        for n in range(3):
            await wait_until(
                lambda n=n: len(one.deliveries) + len(two.deliveries) == 2 * (n + 1), "the next two"
            )
            for worker in (one, two):
                # Both are busy, each with one conversation at a time.
                assert len(worker.deliveries) == n + 1
                latest = worker.deliveries[-1]
                assert latest.message.parts[0].text.text.endswith(f" {n}")
                await worker.settle(latest.delivery_id, replies=[answer("done")])
        for client in (ann, bob):
            assert [frame_text(await client.next("message")) for _ in range(3)] == ["done"] * 3
        assert_promises_kept(fleet, history, [ann, bob])


async def test_a_delivery_is_retried_then_dead_lettered_and_can_be_replayed(
    fleet: Fleet,
) -> None:
    history = History()
    async with (
        RecordingClient(history, "demo/ann", edge_of(fleet), "person:ann") as ann,
        StreamingWorker(fleet.router.address) as worker,
    ):
        await ann.say("poison")
        await ann.say("water")
        for attempt in range(1, MAX_ATTEMPTS + 1):
            await wait_until(lambda n=attempt: len(worker.deliveries) == n, "it is delivered")
            assert worker.deliveries[-1].attempt == attempt
            assert worker.deliveries[-1].message.parts[0].text.text == "poison"
            retry = RetryLater(after_ms=1, reason="it burns")
            worker.results.clear()
            await worker.settle(worker.deliveries[-1].delivery_id, retry=retry)
        water = await worker.wait_for_delivery("water")
        await worker.settle(water.delivery_id, replies=[answer("ah")])
        with GrpcBackend(fleet.router.address) as backend:
            agents = AgentServiceStub(backend.channel)
            (stats,) = backend.stats().agents
            assert stats.dead_letters == 1
            (letter,) = agents.ListDeadLetters(
                ListDeadLettersRequest(tenant="demo", agent="echo")
            ).dead_letters
            assert (text_of(letter.message), letter.attempts) == ("poison", MAX_ATTEMPTS)
            assert "it burns" in letter.reason
            request = ReplayDeadLettersRequest(tenant="demo", agent="echo", delivery_ids=[letter.delivery_id])
            assert agents.ReplayDeadLetters(request).replayed == 1
            assert agents.ReplayDeadLetters(request).replayed == 0
            await wait_until(lambda: len(worker.deliveries) == MAX_ATTEMPTS + 2, "it is delivered again")
            again = worker.deliveries[-1]
            assert (again.message.parts[0].text.text, again.attempt) == ("poison", 1)
            await worker.settle(again.delivery_id, reject={"reason": "never"})
            listing = ListDeadLettersRequest(tenant="demo", agent="echo")
            await wait_until(
                lambda: [each.reason for each in agents.ListDeadLetters(listing).dead_letters] == ["never"],
                "it is a dead letter again",
            )
        assert_promises_kept(fleet, history, [ann])


async def test_attempts_are_counted_across_a_restart_of_the_router(fleet: Fleet) -> None:
    async with (
        RecordingClient(History(), "demo/ann", edge_of(fleet), "person:ann") as ann,
        StreamingWorker(fleet.router.address) as worker,
    ):
        await ann.say("question")
        first = await worker.wait_for_delivery("question")
        await worker.settle(first.delivery_id, retry=RetryLater(after_ms=1))
        await wait_until(lambda: len(worker.deliveries) == 2, "it is delivered again")
        await fleet.restart_router()
        await wait_until(lambda: worker.broken, "the stream breaks")
        await worker.attach()
        assert (await worker.wait_for_delivery("question")).attempt == 2


async def test_a_draining_worker_gets_nothing_new_and_loses_nothing(fleet: Fleet) -> None:
    history = History()
    async with (
        RecordingClient(history, "demo/ann", edge_of(fleet), "person:ann") as ann,
        StreamingWorker(fleet.router.address, ident="old") as old,
    ):
        await ann.say("first")
        held = await old.wait_for_delivery("first")
        await old.send(drain=True)
        async with StreamingWorker(fleet.router.address, ident="new") as new:
            await ann.say("second")
            await old.settle(held.delivery_id, replies=[answer("one")])
            second = await new.wait_for_delivery("second")
            await new.settle(second.delivery_id, replies=[answer("two")])
            assert len(old.deliveries) == 1
            assert [frame_text(await ann.next("message")) for _ in range(2)] == ["one", "two"]
            assert_promises_kept(fleet, history, [ann])


async def test_a_cancel_before_any_reply_withdraws_the_delivery(fleet: Fleet) -> None:
    history = History()
    async with RecordingClient(history, "demo/ann", edge_of(fleet), "person:ann") as ann:
        ident = await ann.say("never mind")
        await ann.send({"type": "cancel", "id": "x", "client_id": ident})
        answered = await ann.next("cancelled", id="x")
        assert (answered["replies"], answered["prevented"]) == ([], True)
        await ann.say("this instead")
        async with StreamingWorker(fleet.router.address) as worker:
            await worker.wait_for_delivery("this instead")
            assert len(worker.deliveries) == 1
            await ann.send({"type": "cancel", "id": "y", "client_id": "unknown"})
            assert (await ann.next("error", id="y"))["code"] == "MESSAGE_NOT_FOUND"
        assert_promises_kept(fleet, history, [ann])


async def test_a_cancel_reaches_the_worker_that_holds_the_delivery(fleet: Fleet) -> None:
    history = History()
    async with (
        RecordingClient(history, "demo/ann", edge_of(fleet), "person:ann") as ann,
        StreamingWorker(fleet.router.address) as worker,
    ):
        ident = await ann.say("question")
        delivery = await worker.wait_for_delivery("question")
        await ann.send({"type": "cancel", "id": "x", "client_id": ident})
        assert (await ann.next("cancelled", id="x"))["prevented"]
        await wait_until(lambda: worker.cancelled == [delivery.delivery_id], "the worker is notified")
        # A reply that is opened nevertheless ends at once, and a reply in a settlement is dropped.
        number, opened = await worker.open("r", delivery_id=delivery.delivery_id)
        await wait_until(lambda: [e.state for e in worker.ended] == [3], "it ends")
        await worker.settle(delivery.delivery_id, replies=[answer("too late")])
        await wait_until(lambda: ann.texts.state.get(opened.message.id) == "cancelled", "ann sees it end")
        assert number == 1
        with GrpcBackend(fleet.router.address) as backend:
            texts = [text_of(message) for message in backend.messages(ann.home)]
            assert texts == ["question", ""]
            assert not backend.stats().agents[0].waiting
        assert_promises_kept(fleet, history, [ann])


async def test_an_open_reply_can_be_cancelled_by_participants_only(fleet: Fleet) -> None:
    history = History()
    async with (
        RecordingClient(history, "demo/ann", edge_of(fleet), "group:team") as ann,
        RecordingClient(history, "demo/bob", edge_of(fleet), "group:team") as bob,
        RecordingClient(history, "demo/eve", edge_of(fleet), "person:eve") as eve,
        StreamingWorker(fleet.router.address) as worker,
    ):
        await ann.say("question")
        delivery = await worker.wait_for_delivery("question")
        number, opened = await worker.open("r", delivery_id=delivery.delivery_id)
        ident = opened.message.id
        await worker.add(number, 0, "so far")
        await wait_until(lambda: bob.texts.text.get(ident) == "so far", "bob reads")
        await eve.send({"type": "cancel", "id": "x", "message_id": ident})
        assert (await eve.next("error", id="x"))["code"] == "MESSAGE_NOT_FOUND"
        await bob.send({"type": "cancel", "id": "x", "message_id": ident})
        cancelled = [{"message_id": ident, "state": "cancelled"}]
        assert (await bob.next("cancelled", id="x"))["replies"] == cancelled
        await wait_until(lambda: [e.state for e in worker.ended] == [3], "the worker is notified")
        await worker.add(number, 1, " and more")
        await wait_until(
            lambda: any(p.error.code == "MESSAGE_ENDED" for p in worker.progress), "it is refused"
        )
        await worker.settle(delivery.delivery_id)
        # A cancel after the end has no effect and reports that.
        await ann.send({"type": "cancel", "id": "y", "message_id": ident})
        assert (await ann.next("cancelled", id="y"))["replies"] == cancelled
        assert ann.texts.text[ident] == "so far"
        assert_promises_kept(fleet, history, [ann, bob])
