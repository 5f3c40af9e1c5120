"""Cancels before a reply exists, while it is open, and after it has ended."""

from __future__ import annotations

from typing import Any

import pytest
from trunkline.v1.frame_pb2 import CancelledFrame
from trunkline.v1.message_pb2 import CHANGE_KIND_ENDED
from trunkline_router.core.values.topics import PERSON, TopicKey

from tests.router.core.harness.client import Client
from tests.router.core.harness.invariants import check_all
from tests.router.core.harness.producers import CANCELLED, COMPLETE, Producing, Streaming
from tests.router.core.harness.router import ALICE, Router

BOB: TopicKey = ("t", "a", "w", PERSON, "bob")


def cancelled(router: Router, client: Client, **target: str) -> tuple[list[tuple[str, Any]], bool]:
    """Return the answer to a cancel once everything is settled."""
    router.frame(client, cancel=target)
    router.run()
    answer = client.last("cancelled")
    assert isinstance(answer, CancelledFrame)
    return [(reply.message_id, reply.state) for reply in answer.replies], answer.prevented


def client_with_messages(router: Router, *texts: str) -> Client:
    """Return a client that has published messages, each with its text as id."""
    client = router.connected(ALICE, user="x")
    for text in texts:
        router.say(client, text, ident=text)
    router.run()
    return client


def delivered_to(worker: Streaming) -> list[str]:
    """Return the texts that a worker received, in order."""
    worker.sync()
    return [message.parts[0].text.text for message, _ in worker.given.values()]


@pytest.mark.parametrize("has_queue", [True, False])
@pytest.mark.parametrize("same_commit", [True, False])
def test_a_cancelled_message_that_waits_is_never_dispatched(has_queue: bool, same_commit: bool) -> None:
    router = Router()
    if has_queue:
        Streaming(router).detach()
    client = client_with_messages(router)
    router.say(client, "q1", ident="q1")
    if not same_commit:
        router.run()
    assert cancelled(router, client, client_id="q1") == ([], True)
    assert not router.log.unsettled
    router.say(client, "q2", ident="q2")
    router.run()
    worker = Streaming(router)
    router.run()
    assert delivered_to(worker) == ["q2"]
    check_all(router.core, router.log, at_rest=True)


@pytest.mark.parametrize(
    "steps",
    [
        "read_log write report_commit return_reads",
        "write read_log report_commit return_reads",
        "read_log write return_reads report_commit",
    ],
)
def test_a_message_withdrawn_while_the_first_worker_attaches_is_not_dispatched(steps: str) -> None:
    router = Router()
    client = client_with_messages(router, "q1")
    router.frame(client, cancel={"client_id": "q1"})
    router.write()
    router.report_commit()
    worker = Streaming(router)
    for step in steps.split():
        getattr(router, step)()
    router.run()
    assert delivered_to(worker) == []
    check_all(router.core, router.log, at_rest=True)


def test_the_worker_that_holds_it_is_notified_and_its_answer_is_dropped() -> None:
    router = Router()
    client = client_with_messages(router, "q1", "q2")
    worker = Streaming(router)
    router.run()
    worker.read()
    assert cancelled(router, client, client_id="q1") == ([], True)
    worker.read()
    assert worker.cancelled == [1]
    worker.settle(1, "too late")
    router.run()
    worker.read()
    assert not worker.results[0].HasField("error")
    assert client.texts == []
    assert delivered_to(worker) == ["q1", "q2"], "its conversation goes on"


@pytest.mark.parametrize("is_opened_before", [True, False])
def test_a_reply_opened_during_or_after_the_cancel_ends_at_once(is_opened_before: bool) -> None:
    router = Router()
    client = client_with_messages(router, "q1")
    worker = Streaming(router)
    router.run()
    worker.read()
    router.frame(client, cancel={"client_id": "q1"})
    router.write()
    if is_opened_before:
        reply = worker.open(1)
    router.report_commit()
    if not is_opened_before:
        reply = worker.open(1)
    router.run()
    worker.read()
    answer = client.last("cancelled")
    assert isinstance(answer, CancelledFrame)
    assert answer.prevented
    assert worker.ended[reply].state == CANCELLED


def test_an_open_reply_ends_and_its_message_is_not_delivered_again() -> None:
    router = Router()
    client = client_with_messages(router, "q1")
    worker = Streaming(router)
    router.run()
    worker.read()
    reply = worker.open(1)
    router.run()
    worker.read()
    message_id = worker.opened[reply].message.id
    assert cancelled(router, client, client_id="q1") == ([(message_id, CANCELLED)], False)
    worker.detach()
    again = Streaming(router)
    router.run()
    assert delivered_to(again) == []


@pytest.mark.parametrize("is_settled", [True, False])
def test_a_cancel_after_the_end_reports_how_it_ended(is_settled: bool) -> None:
    router = Router()
    client = client_with_messages(router, "q1")
    worker = Streaming(router)
    router.run()
    worker.read()
    reply = worker.open(1)
    router.run()
    worker.end(reply)
    if is_settled:
        worker.settle(1)
    router.run()
    worker.read()
    message_id = worker.opened[reply].message.id
    assert cancelled(router, client, client_id="q1") == ([], False)
    assert cancelled(router, client, message_id=message_id) == ([(message_id, COMPLETE)], False)


def test_an_answer_being_committed_is_not_prevented() -> None:
    router = Router()
    client = client_with_messages(router, "q1")
    worker = Streaming(router)
    router.run()
    worker.read()
    worker.settle(1, "answer")
    router.frame(client, cancel={"client_id": "q1"})
    router.write()
    router.report_commit()
    assert client.texts == ["answer"]
    router.run()
    answer = client.last("cancelled")
    assert isinstance(answer, CancelledFrame)
    assert not answer.prevented


def test_a_cancel_that_fails_to_commit_is_rejected_and_the_delivery_stays() -> None:
    router = Router()
    client = client_with_messages(router, "q1", "q2")
    worker = Streaming(router)
    router.run()
    worker.read()
    for ident in ("q1", "q2"):
        router.frame(client, cancel={"client_id": ident})
    router.write()
    router.report_commit()
    router.fail()
    assert [f.error.code for f in client.frames if f.HasField("error")] == ["LOG_UNAVAILABLE"] * 2
    worker.settle(1, "answer")
    router.run()
    assert client.texts == ["answer"]
    assert delivered_to(worker) == ["q1", "q2"]
    check_all(router.core, router.log, at_rest=True)


def test_a_cancel_for_an_erased_log_stops_nothing_in_its_successor() -> None:
    router = Router()
    client = client_with_messages(router, "q1")
    router.reset(ALICE)
    router.say(client, "new", ident="new")
    router.run()
    assert cancelled(router, client, client_id="q1") == ([], False)
    assert len(router.log.unsettled) == 1


def test_a_cancel_waiting_during_an_erasure_stops_nothing_in_the_successor() -> None:
    router = Router()
    client = client_with_messages(router, "q1")
    router.frame(client, cancel={"client_id": "q1"})
    router.write()
    router.report_commit()
    router.reset(ALICE)
    router.say(client, "new", ident="new")
    router.run()
    assert len(router.log.unsettled) == 1


@pytest.mark.parametrize("target", ["message_id", "client_id"])
def test_an_unknown_message_or_one_of_another_conversation_is_not_found(target: str) -> None:
    router = Router()
    client, other = client_with_messages(router, "q1"), router.connected(BOB, user="y")
    worker = Streaming(router)
    router.run()
    worker.read()
    reply = worker.open(1)
    router.run()
    worker.read()
    names = {"message_id": worker.opened[reply].message.id, "client_id": "q1"}
    for who, name in ((other, names[target]), (client, "nothing")):
        router.frame(who, cancel={target: name})
        router.run()
        assert who.frames[-1].error.code == "MESSAGE_NOT_FOUND"
    assert router.log.open


def test_a_reply_on_disk_before_the_core_knows_it_is_found() -> None:
    router = Router()
    client = client_with_messages(router)
    worker = Streaming(router)
    worker.open(ALICE)
    router.write()
    router.frame(client, cancel={"message_id": "e1-1"})
    router.read_log()
    router.return_reads()
    router.run()
    answer = client.last("cancelled")
    assert isinstance(answer, CancelledFrame)
    assert [reply.state for reply in answer.replies] == [CANCELLED]


def states(router: Router) -> list[int]:
    """Return the states of all streamed replies that ended, in order."""
    assert not router.log.open, "a reply is open"
    return [change.state for change in router.log.changes(ALICE)]


def test_a_reply_whose_worker_is_gone_before_its_commit_is_cancelled_too() -> None:
    router = Router()
    client = client_with_messages(router, "m1")
    worker = Streaming(router)
    router.run()
    worker.read()
    Producing(router, ALICE)
    router.run()
    router.frame(client, cancel={"client_id": "m1"})
    for text in ("m2", "m3", "m4", "m5"):
        router.say(client, text, ident=text)
    router.run()
    assert router.log.head(ALICE).seq == 6
    worker.open(1)
    silent = router.tick(6)
    assert [peer for peer, _ in silent] == [worker.worker]
    worker.detach()
    router.run()
    assert router.log.open.keys() == {"e1-2"}, "the backend's own message stays"
    assert [(change.message_id, change.state) for change in router.log.changes(ALICE)] == [
        ("e1-7", CANCELLED)
    ]
    check_all(router.core, router.log, at_rest=True)


@pytest.mark.parametrize("redelivered", [True, False])
def test_a_reply_of_a_worker_that_lost_the_delivery_is_cancelled_too(redelivered: bool) -> None:
    router = Router()
    client = client_with_messages(router, "m1")
    worker = Streaming(router)
    router.run()
    worker.read()
    router.frame(client, cancel={"client_id": "m1"})
    router.write()
    worker.open(1)
    worker.settle(1, retry={"after_ms": 1})
    if redelivered:
        router.tick(0.1)
        assert 1 in worker.worker.held
    else:
        worker.detach()
    router.run()
    assert states(router) == [CANCELLED]
    answer = client.last("cancelled")
    assert isinstance(answer, CancelledFrame)
    assert answer.prevented or answer.replies[0].state == CANCELLED
    check_all(router.core, router.log, at_rest=True)


def test_a_second_reply_on_its_way_to_the_log_is_cancelled_with_the_first() -> None:
    router = Router()
    client = client_with_messages(router, "m1")
    worker = Streaming(router)
    router.run()
    worker.read()
    worker.open(1, "k1")
    router.run()
    router.frame(client, cancel={"client_id": "m1"})
    router.write()
    other = Streaming(router, "w2")
    other.open(ALICE, "k2", reply_to=worker.given[1][0].id)
    router.run()
    assert states(router) == [CANCELLED, CANCELLED]


@pytest.mark.parametrize("restarted", [True, False])
def test_a_reply_opened_by_address_long_after_the_cancel_is_cancelled(restarted: bool) -> None:
    router = Router()
    client = client_with_messages(router, "m1")
    worker = Streaming(router)
    router.run()
    worker.read()
    message_id = worker.given[1][0].id
    assert cancelled(router, client, client_id="m1") == ([], True)
    worker.settle(1)
    router.run()
    if restarted:
        router.restart()
    worker = Streaming(router, "w2")
    worker.open(ALICE, "late", reply_to=message_id)
    router.run()
    assert states(router) == [CANCELLED]


def test_a_cancelled_reply_is_cancelled_by_the_next_router() -> None:
    router = Router()
    client = client_with_messages(router, "m1")
    worker = Streaming(router)
    router.run()
    worker.read()
    router.frame(client, cancel={"client_id": "m1"})
    router.write()
    router.report_commit()
    worker.open(1)
    router.write()
    router.restart()
    router.run()
    assert states(router) == [CANCELLED]


def test_a_cancel_whose_end_fails_to_commit_is_tried_again() -> None:
    router = Router()
    client = client_with_messages(router, "m1")
    worker = Streaming(router)
    router.run()
    worker.read()
    assert cancelled(router, client, client_id="m1") == ([], True)
    worker.open(1)
    router.write()
    router.report_commit()
    router.fail()
    assert router.log.open
    router.tick(1)
    router.run()
    assert states(router) == [CANCELLED]
    worker.read()
    assert worker.ended[1].state == CANCELLED


def test_a_backends_reply_to_a_cancelled_message_is_cancelled() -> None:
    router = Router()
    client = client_with_messages(router, "m1")
    assert cancelled(router, client, client_id="m1") == ([], True)
    producing = Producing(router, ALICE, reply_to="e1-1")
    router.run()
    assert states(router) == [CANCELLED]
    assert producing.reason is None


def test_replies_to_a_recalled_message_are_cancelled() -> None:
    router = Router()
    client = client_with_messages(router, "m1")
    worker = Streaming(router)
    router.run()
    worker.read()
    worker.open(1)
    router.run()
    router.frame(client, recall={"message_id": "e1-1"})
    router.run()
    worker.open(ALICE, "late", reply_to="e1-1")
    router.run()
    assert not router.log.open
    ended = [c.state for c in router.log.changes(ALICE) if c.kind == CHANGE_KIND_ENDED]
    assert ended == [CANCELLED, CANCELLED]
